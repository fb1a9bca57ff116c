"""Drives an engine step by step on a schedule of arrivals, and asks transformers for the same continuations."""

from collections.abc import Iterable
from typing import Any

import torch

from engine.core import EngineCore
from engine.request import GenerateRequest, SamplingParams, TokenChunk


def request(request_id: str, prompt: list[int], *, max_tokens: int = 12, **sampling: Any) -> GenerateRequest:
    """A request; greedy unless the sampling fields say otherwise."""
    fields = {"seed": 0, "temperature": 0.0, "ignore_eos": True, **sampling}
    return GenerateRequest(
        request_id=request_id, prompt_token_ids=prompt, sampling=SamplingParams(max_tokens=max_tokens, **fields)
    )


def drive(core: EngineCore, arrivals: Iterable[tuple[int, GenerateRequest]]) -> dict[str, list[TokenChunk]]:
    """Step until nothing is left, adding each request before the step it arrives at; the chunks of each."""
    pending = sorted(arrivals, key=lambda arrival: arrival[0])
    chunks: dict[str, list[TokenChunk]] = {entry.request_id: [] for _, entry in pending}
    step = 0
    while True:
        while pending and pending[0][0] <= step:
            core.scheduler.add(pending.pop(0)[1], now=float(step))
        new = core.step(float(step))
        core.scheduler.check_invariants()
        for chunk in new or []:
            assert not chunk.error, chunk.error
            assert chunk.index == sum(len(c.token_ids) for c in chunks[chunk.request_id])
            chunks[chunk.request_id].append(chunk)
        load = core.scheduler.load()
        if not pending and load.num_running + load.num_waiting == 0:
            return chunks
        step += 1
        assert step < 2000, "the engine does not come to an end"


def tokens(chunks: list[TokenChunk]) -> list[int]:
    """All output tokens of a request."""
    return [token_id for chunk in chunks for token_id in chunk.token_ids]


def generate(model: Any, prompt: list[int], max_tokens: int, **options: Any) -> list[int]:
    """What transformers' own greedy `generate()` answers."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer
