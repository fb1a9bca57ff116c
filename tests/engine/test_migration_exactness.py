"""A stream cut at any index and continued by another engine is the uncut one, in float32, for all that can be asked."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.core import EngineCore
from engine.request import FinishReason, GenerateRequest, TokenChunk, TokenLogprobs
from tests.engine.drive_engine import drive, request, tokens
from tests.engine.test_exactness import ROOMY, engine, prompts
from tests.engine.tiny_models import save_tiny_model

MAX_TOKENS = 16
ASKED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 0.9, "seed": 77},
    "truncated": {"temperature": 1.2, "seed": 5, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    "penalties": {
        "temperature": 0.8,
        "seed": 3,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.4,
    },
    "logit_bias": {"temperature": 1.0, "seed": 9, "logit_bias": {7: 2.0, 11: -100.0}},
    "min_tokens": {"temperature": 1.0, "seed": 9, "min_tokens": 9, "logit_bias": {7: 99.0}, "stop_token_ids": (7,)},
    "logprobs": {"temperature": 0.7, "seed": 21, "logprobs": 3},
    "prompt_logprobs": {"seed": 2, "logprobs": 0, "prompt_logprobs": 2},
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[EngineCore, EngineCore]:
    """The one that is lost and the one that goes on."""
    folder: Path = save_tiny_model("llama", tmp_path_factory.mktemp("llama"))
    return engine(folder, ROOMY), engine(folder, ROOMY)


def rest_of(whole: GenerateRequest, output: list[int]) -> GenerateRequest:
    """What the gateway submits when `output` has come."""
    sampling = msgspec.structs.replace(whole.sampling, prompt_logprobs=None)
    return msgspec.structs.replace(
        whole, request_id=f"cut at {len(output)}", attempt=1, output_token_ids=output, sampling=sampling
    )


def close(found: list[TokenLogprobs], expected: list[TokenLogprobs]) -> bool:
    """Prefill and decode may round the last bits differently."""
    return all(
        a.logprob == pytest.approx(b.logprob, abs=1e-4) and [i for i, _ in a.top] == [i for i, _ in b.top]
        for a, b in zip(found, expected, strict=True)
    )


def logprobs_of(chunks: list[TokenChunk]) -> list[TokenLogprobs]:
    return [entry for chunk in chunks for entry in chunk.logprobs or []]


@pytest.mark.parametrize("options", list(ASKED.values()), ids=list(ASKED))
def test_cut_anywhere(options: dict[str, Any], engines: tuple[EngineCore, EngineCore]) -> None:
    first, second = engines
    prompt = prompts(1)[0]
    if "stop_token_ids" not in options:
        endless = drive(first, [(0, request("a", prompt, max_tokens=MAX_TOKENS, **options))])["a"]
        options = options | {"stop_token_ids": (tokens(endless)[11],)}
    whole = request("a", prompt, max_tokens=MAX_TOKENS, **options)
    uncut = drive(first, [(0, whole)])["a"]
    output = tokens(uncut)
    assert uncut[-1].finish is FinishReason.STOP and options.get("min_tokens", 0) < len(output) < MAX_TOKENS
    cuts = [rest_of(whole, output[:index]) for index in range(len(output))]
    for cut in cuts:
        second.scheduler.add(cut, now=0.0)
    continued: dict[str, list[TokenChunk]] = {cut.request_id: [] for cut in cuts}
    while (chunks := second.step(0.0)) is not None:
        for chunk in chunks:
            continued[chunk.request_id].append(chunk)
    for index, rest in enumerate(continued.values()):
        assert [chunk.index for chunk in rest] == list(range(index, len(output)))
        assert tokens(rest) == output[index:], f"cut at {index}"
        assert rest[-1].finish is FinishReason.STOP
        assert close(logprobs_of(rest), logprobs_of(uncut)[index:])
        assert all(chunk.prompt_logprobs is None for chunk in rest)
