"""Sampling fields: the extremes that are accepted mean something exact."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.api.request_body import convert_fields
from cluster.api.sampling_rules import LogprobsWanted, choice_seed, context_limit, output_length, sampling_params
from cluster.api.schema_completions import CompletionRequest
from cluster.errors import InvalidRequest
from cluster.text.served_model import GenerationDefaults
from engine.request import SamplingParams
from tests.cluster.local_engine import engine_info

INFO = engine_info(400)


def params(**fields: Any) -> SamplingParams:
    body = convert_fields({"model": "m", "prompt": "p"} | fields, CompletionRequest)
    return sampling_params(body, GenerationDefaults(), INFO, 16, 1, LogprobsWanted())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 1e-9}, {"temperature": 0.0}),
        ({"temperature": 2}, {"temperature": 2.0}),
        ({"top_p": 0}, {"temperature": 0.0, "top_p": 1.0}),
        ({"top_p": 1}, {"temperature": 1.0, "top_p": 1.0}),
        ({"top_k": 0}, {"top_k": 0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 399}, {"top_k": 399}),
        ({"top_k": 10**30}, {"top_k": 0}),
        ({"min_p": 1}, {"min_p": 1.0}),
        ({"logit_bias": {"0": -100}}, {"logit_bias": {0: -100.0}}),
        ({"stop_token_ids": [9, 3, 9]}, {"stop_token_ids": (3, 9)}),
    ],
)
def test_extremes(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    found = params(**fields)
    assert {name: getattr(found, name) for name in expected} == expected


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 127))
def test_seeds_are_sixty_three_bits(seed: int, choice: int) -> None:
    assert 0 <= choice_seed(seed, choice) < 2**63


def test_the_first_answer_has_the_requests_own_seed() -> None:
    assert choice_seed(5, 0) == 5
    assert len({choice_seed(5, index) for index in range(128)} | {choice_seed(6, index) for index in range(128)}) == 256


@pytest.mark.parametrize(
    ("asked", "default", "num_prompt", "expected"),
    [(None, None, 90, 10), (None, 16, 90, 10), (None, 16, 50, 16), (10, None, 90, 10), (1, None, 99, 1)],
)
def test_output_length(asked: int | None, default: int | None, num_prompt: int, expected: int) -> None:
    info = engine_info(400, max_model_len=100)
    assert output_length(asked, "max_tokens", default, num_prompt, info) == expected


def test_a_small_cache_is_a_small_context() -> None:
    info = engine_info(400, max_model_len=100, num_blocks=2)
    assert context_limit(info) == 33  # the last token is never computed
    with pytest.raises(InvalidRequest, match=r"33 tokens.*has 33"):
        output_length(None, "max_tokens", None, 33, info)
