"""What a call is charged, and sums of it."""

import msgspec
import pytest

from cluster.auth.principal import Principal
from cluster.calls.record import Attempt, Caller, CallRecord
from cluster.calls.usage import sum_usage, usage_of
from cluster.quotas.charge import charged_tokens, reserved_tokens

NOON = 1_764_158_400.0  # 2025-11-26


def ended(prompt: int = 10, cached: int = 4, output: int = 5, attempts: int = 1, tenant: str = "acme") -> CallRecord:
    record = CallRecord("c1", "m", Caller(principal=Principal(tenant=tenant, key_id="k"), way="/v1/x"), 1.0)
    record.num_choices, record.num_prompt_tokens, record.max_output_tokens = 1, prompt, 20
    for number in range(attempts):
        attempt = Attempt("r", 1.0, 0.0, 1.0, None)
        record.began_attempt(attempt)
        record.got_tokens(attempt, output if number == 0 else 0, cached, 2.0)
    record.end("ok", 200, 3.5)
    return record


@pytest.mark.parametrize(("weight", "charged"), [(1.0, 15.0), (0.5, 13.0), (0.0, 11.0)])
def test_cached_tokens_count_by_their_weight(weight: float, charged: float) -> None:
    assert charged_tokens(ended(), weight) == charged


def test_a_charge_is_never_negative_nor_more_than_what_was_reserved() -> None:
    assert charged_tokens(ended(prompt=3, cached=1000, output=0), 0.0) == 0.0
    assert charged_tokens(ended(output=20), 1.0) <= reserved_tokens(ended())


def test_a_migrated_call_is_charged_its_prompt_once() -> None:
    assert charged_tokens(ended(attempts=3), 1.0) == charged_tokens(ended(), 1.0)


def test_a_call_that_no_replica_was_given_costs_nothing() -> None:
    assert charged_tokens(ended(attempts=0), 1.0) == 0.0
    row = usage_of(ended(attempts=0), 1.0, NOON)
    assert (row.prompt_tokens, row.output_tokens) == (0, 0)


def test_a_resumed_call_is_charged_no_prompt_twice() -> None:
    record = ended()
    record.resume(7, was_charged=True)
    assert reserved_tokens(record) == 7
    assert charged_tokens(record, 1.0) == 5.0
    row = usage_of(record, 1.0, NOON)
    assert (row.prompt_tokens, row.cached_tokens, row.output_tokens) == (0, 0, 5)


def test_a_call_that_goes_on_with_what_had_not_begun_is_charged_all() -> None:
    record = ended()
    record.resume(20, was_charged=False)
    assert reserved_tokens(record) == 30
    assert charged_tokens(record, 1.0) == 15.0
    assert usage_of(record, 1.0, NOON).prompt_tokens == 10


def test_a_row_says_who_when_and_how_much() -> None:
    row = usage_of(ended(), 0.0, NOON)
    assert (row.time, row.day) == ("2025-11-26T12:00:00.000+00:00", "2025-11-26")
    assert (row.tenant, row.key, row.model, row.way, row.outcome) == ("acme", "k", "m", "/v1/x", "ok")
    assert (row.prompt_tokens, row.cached_tokens, row.output_tokens, row.charged_tokens) == (10, 4, 5, 11.0)
    assert row.duration_s == 2.5


def test_rows_are_summed_by_what_is_asked_for() -> None:
    rows = [usage_of(ended(tenant=tenant), 1.0, NOON + day * 86_400) for tenant in ("b", "a", "b") for day in (0, 1)]
    assert [(line["tenant"], line["requests"], line["charged_tokens"]) for line in sum_usage(rows, ["tenant"])] == [
        ("a", 2, 30.0),
        ("b", 4, 60.0),
    ]
    assert [line["day"] for line in sum_usage(rows, ["day"])] == ["2025-11-26", "2025-11-27"]
    [total] = sum_usage(rows, [])
    assert total == {
        "requests": 6, "prompt_tokens": 60, "cached_tokens": 24, "output_tokens": 30, "charged_tokens": 90.0,
    }  # fmt: skip
    assert msgspec.json.decode(msgspec.json.encode(rows[0]), type=type(rows[0])) == rows[0]
