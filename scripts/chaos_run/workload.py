"""What the clients ask: a seeded mix of everything the completions API offers, each with the answer it must get.

The chain engine's answer follows from the prompt alone: token i is a hash of everything before it. It is computed here
once more, from its definition, so that the house's own engine is not its own judge.
"""

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from cluster.text.detokenizer import Detokenizer
from cluster.text.tokenizer import Tokenizer

SHARED_PREFIX = 192  #: prompt tokens that some requests have in common


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: the body to send, and what the oracle must know of it."""

    name: str
    prompt: list[int]
    max_tokens: int
    n: int = 1
    stream: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def body(self, model: str) -> dict[str, Any]:
        """JSON for `/v1/completions`."""
        usage = {"stream": True, "stream_options": {"include_usage": True}} if self.stream else {}
        return {
            "model": model, "prompt": self.prompt, "max_tokens": self.max_tokens, "n": self.n, "return_token_ids": True,
            **self.options, **usage,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Expected:
    """The whole answer of one choice. `near_ties`: places where the model's two best tokens are all but equal."""

    token_ids: list[int]
    text: str
    finish_reason: str
    near_ties: frozenset[int] = frozenset()


def chain_tokens(prompt: Sequence[int], count: int, vocab_size: int) -> Iterator[int]:
    """Each token is a hash of everything before it."""
    chain = blake2b(struct.pack(f"<{len(prompt)}I", *prompt), digest_size=8)
    for _ in range(count):
        token = int.from_bytes(chain.digest(), "little") % vocab_size
        chain.update(struct.pack("<I", token))
        yield token


class ChainModel:
    """The answers of the chain engine behind a tokenizer."""

    def __init__(self, vocab_size: int, tokenizer: Tokenizer) -> None:
        self.vocab_size, self._tokenizer = vocab_size, tokenizer

    def tokens(self, prompt: Sequence[int], count: int) -> list[int]:
        """The first `count` tokens after `prompt`."""
        return list(chain_tokens(prompt, count, self.vocab_size))

    def word_in(self, token_ids: Sequence[int], start: int) -> str | None:
        """A text of letters that one of the tokens from `start` on spells by itself."""
        spelled = (self._tokenizer.token_bytes(token_id) for token_id in token_ids[start:])
        return next((word.decode() for word in spelled if len(word) > 3 and word.isalpha()), None)

    def answer(self, ask: Ask) -> list[Expected]:
        """What each choice must be: the chain knows no randomness, so all are the same."""
        token_ids = self.tokens(ask.prompt, ask.max_tokens)
        stop_ids, stops = ask.options.get("stop_token_ids", ()), ask.options.get("stop", ())
        detokenizer = Detokenizer(self._tokenizer, [], skip_special_tokens=True)
        text = ""
        for count, token_id in enumerate(token_ids, 1):
            if token_id in stop_ids:
                return [Expected(token_ids[:count], text + detokenizer.flush(), "stop")] * ask.n
            text += detokenizer.feed((token_id,))
            for stop in stops:
                if stop in text:
                    return [Expected(token_ids[:count], text[: text.index(stop)], "stop")] * ask.n
        return [Expected(token_ids, text + detokenizer.flush(), "length")] * ask.n


class ChainWorkload:
    """An endless mix for the chain engine: number k is the same for the same seed, whatever ran before."""

    def __init__(self, seed: int, model: ChainModel, lengths: Sequence[tuple[int, int]]) -> None:
        self.model = model
        self._seed, self._lengths = seed, lengths
        draw = random.Random(f"{seed}/prefix")
        self._prefix = [draw.randrange(model.vocab_size) for _ in range(SHARED_PREFIX)]

    def ask(self, number: int) -> tuple[Ask, list[Expected]]:
        """Request number `number` and its answer."""
        draw = random.Random(f"{self._seed}/{number}")
        own = [draw.randrange(self.model.vocab_size) for _ in range(draw.choice((8, 40, 160, 500)))]
        prompt = self._prefix + own if draw.random() < 0.3 else own
        max_tokens = draw.randint(*draw.choice(self._lengths))
        kind = draw.choice(KINDS)
        options = {"ignore_eos": True, **self._options(kind, draw, prompt, max_tokens)}
        n = 2 if kind == "two" else 1
        ask = Ask(f"{number}-{kind}", prompt, max_tokens, n, kind != "whole", options)
        return ask, self.model.answer(ask)

    def _options(self, kind: str, draw: random.Random, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        match kind:
            case "greedy":
                return {"temperature": 0}
            case "seeded" | "two":
                return {"temperature": 0.8, "top_p": 0.9, "seed": draw.getrandbits(31)}
            case "logprobs":
                return {"logprobs": 2}
            case "penalties":
                return {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.1}
        token_ids = self.model.tokens(prompt, max_tokens)
        if kind == "stop_ids":
            return {"stop_token_ids": [draw.choice(token_ids[len(token_ids) // 2 :])]}
        if kind == "stop":
            word = self.model.word_in(token_ids, len(token_ids) // 2)
            return {} if word is None else {"stop": [word]}
        return {}


class TokensOnly:
    """Plain greedy streams of the same chain, for a server that knows tokens and no text."""

    def __init__(self, chain: ChainWorkload) -> None:
        self._chain = chain

    def ask(self, number: int) -> tuple[Ask, list[Expected]]:
        ask, _ = self._chain.ask(number)
        plain = Ask(ask.name.split("-")[0], ask.prompt, ask.max_tokens)
        return plain, [replace(expected, text="") for expected in self._chain.model.answer(plain)]


#: Kinds of requests, as often as they stand here; `whole` is not streamed, `sampled` has no seed of the client's.
KINDS = (
    "greedy", "greedy", "greedy", "seeded", "seeded", "sampled", "two", "two", "logprobs", "logprobs", "penalties",
    "stop", "stop_ids", "whole",
)  # fmt: skip
