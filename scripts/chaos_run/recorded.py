"""A real model's answers cannot be computed beforehand: they are recorded without faults, once per request.

With log probabilities of the two best tokens, so that places are known where they are all but equal: there another
order of additions (a prompt computed at once instead of token by token) may tip the choice, and what follows it.
"""

import asyncio
import random
from dataclasses import replace
from typing import Any

from engine.errors import MantaError
from scripts.chaos_run.journal import Journal
from scripts.chaos_run.stream_client import StreamClient
from scripts.chaos_run.workload import KINDS, Ask, Expected

NEAR_TIE = 1e-4  #: difference of log probabilities
RECORDED_AT_ONCE = 8


class NotRecorded(MantaError):
    """Without faults, a request was not answered; `why` says what came."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"the fault-free recording failed: {self.why}"


class RecordedWorkload:
    """The same few requests again and again, in a seeded order."""

    def __init__(self, seed: int, answered: list[tuple[Ask, list[Expected]]]) -> None:
        self._seed, self._answered = seed, answered

    def ask(self, number: int) -> tuple[Ask, list[Expected]]:
        ask, expected = random.Random(f"{self._seed}/{number}").choice(self._answered)
        return replace(ask, name=f"{number}-{ask.name}"), expected


async def record(seed: int, count: int, vocab_size: int, client: StreamClient) -> RecordedWorkload:
    """Ask each of `count` different requests once. Raises `NotRecorded`."""
    gate = asyncio.Semaphore(RECORDED_AT_ONCE)

    async def answer(ask: Ask) -> tuple[Ask, list[Expected]]:
        async with gate:
            journal = await client.run(replace(ask, stream=True, options={**ask.options, "logprobs": 2}))
        if journal.errors:
            raise NotRecorded(f"request {ask.name}: {journal.errors[0]}")
        return ask, _answers(journal)

    asks = [_draw_ask(random.Random(f"{seed}/recorded/{number}"), number, vocab_size) for number in range(count)]
    return RecordedWorkload(seed, list(await asyncio.gather(*map(answer, asks))))


def _answers(journal: Journal) -> list[Expected]:
    found = []
    for choice in journal.choices:
        ties = frozenset(at for at, margin in enumerate(choice.margins) if margin < NEAR_TIE)
        found.append(Expected(choice.token_ids, choice.text, choice.finish_reasons[-1], ties))
    return found


def _draw_ask(draw: random.Random, number: int, vocab_size: int) -> Ask:
    kind = KINDS[number % len(KINDS)]
    prompt = [draw.randrange(vocab_size // 8, vocab_size) for _ in range(draw.choice((6, 30, 120, 300)))]
    options: dict[str, Any] = {"ignore_eos": draw.random() < 0.7, "seed": draw.getrandbits(31), "temperature": 0.8}
    match kind:
        case "greedy":
            options["temperature"] = 0
        case "logprobs":
            options |= {"temperature": 0, "logprobs": 2}
        case "penalties":
            options |= {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.1}
        case "stop":
            options["stop"] = [" the", "."]
        case "stop_ids":
            options["stop_token_ids"] = [draw.randrange(vocab_size) for _ in range(20)]
    return Ask(
        f"{kind}{number}", prompt, draw.choice((8, 40, 120, 240)), 2 if kind == "two" else 1, kind != "whole", options
    )
