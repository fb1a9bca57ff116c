"""What is counted of a call: its phases, its tokens as they are charged, and each ending once."""

import asyncio

import pytest

from cluster.auth.principal import Principal
from cluster.calls.calls import Calls
from cluster.calls.record import Attempt, Caller, CallRecord
from cluster.errors import EngineFailed, RateLimited, Unauthorized
from cluster.metrics import declared
from cluster.metrics.call_meters import CallMeters
from cluster.metrics.declared import Metric
from cluster.metrics.instruments import Instruments


class World:
    """Calls that are admitted, but for those of the tenant `broke`."""

    def __init__(self) -> None:
        self.instruments = Instruments()
        self.meters = CallMeters(self.instruments)
        self.calls = Calls(self, [self.meters])

    async def admit(self, record: CallRecord) -> None:
        if record.tenant == "broke":
            raise RateLimited("nothing is left")

    def default_output(self, tenant: str, model: str, num_prompt_tokens: int) -> int | None:
        return None

    def record(self, tenant: str = "acme", prompt: int = 10, choices: int = 1) -> CallRecord:
        record = CallRecord(f"call of {tenant}", "m", Caller(principal=Principal(tenant=tenant)), 100.0)
        record.num_prompt_tokens, record.num_choices = prompt, choices
        return record

    def value(self, metric: Metric, *labels: str) -> float:
        return self.instruments.number(metric, *labels).value

    def times(self, metric: Metric) -> tuple[int, float]:
        """How many, and their sum."""
        histogram = self.instruments.histogram(metric, "m")
        return sum(histogram.counts), pytest.approx(histogram.sum)


def attempt(record: CallRecord, *token_times: float, cached: int = 0, last: float | None = None) -> Attempt:
    """Asked for at 100.002, granted at 100.01, 6 ms of it in the queue."""
    made = Attempt("r0", 100.002, 0.006, 100.01, last)
    record.began_attempt(made)
    for at in token_times:
        record.got_tokens(made, 1, cached, at)
    return made


async def test_the_phases_of_a_call() -> None:
    world = World()
    record = world.record()
    async with world.calls.run(record):
        assert world.value(declared.CALLS_RUNNING, "m") == 1
        attempt(record, 100.05, 100.06, 100.09, cached=4)
        assert world.meters.num_tokens("m") == 3
    assert world.times(declared.GATEWAY_TIME) == (1, 0.002)
    assert world.times(declared.QUEUE_TIME) == (1, 0.006)
    assert world.times(declared.ROUTE_TIME) == (1, 0.002)
    assert world.times(declared.PREFILL_TIME) == (1, 0.04)
    assert world.times(declared.FIRST_TOKEN_TIME) == (1, 0.05)
    assert world.times(declared.TOKEN_GAP) == (2, 0.04)
    assert world.value(declared.CALLS, "m", "acme", "ok") == 1
    tokens = [world.value(m, "m", "acme") for m in (declared.PROMPT_TOKENS, declared.CACHED_TOKENS)]
    assert tokens == [10, 4] and world.value(declared.OUTPUT_TOKENS, "m", "acme") == 3
    assert world.value(declared.CALLS_RUNNING, "m") == 0


async def test_a_migrated_call_has_one_first_token_and_the_gap_that_its_reader_sees() -> None:
    world = World()
    record = world.record()
    async with world.calls.run(record):
        first = attempt(record, 100.05)
        attempt(record, 100.55, last=first.last_token_at)
    assert world.times(declared.FIRST_TOKEN_TIME) == (1, 0.05)
    assert world.times(declared.TOKEN_GAP) == (1, 0.5)
    assert world.times(declared.PREFILL_TIME)[0] == world.times(declared.QUEUE_TIME)[0] == 2
    assert world.value(declared.PROMPT_TOKENS, "m", "acme") == 10


async def test_choices_have_gaps_of_their_own_and_a_prompt_is_cached_once() -> None:
    world = World()
    record = world.record(choices=2)
    async with world.calls.run(record):
        attempt(record, 100.05, 100.15, cached=8)
        attempt(record, 100.06, 100.16, cached=8)
    assert world.times(declared.TOKEN_GAP) == (2, 0.2)
    assert world.times(declared.FIRST_TOKEN_TIME)[0] == 1
    assert world.value(declared.CACHED_TOKENS, "m", "acme") == 8


async def test_each_ending_is_counted_once_and_only_what_ran_has_tokens() -> None:
    world = World()
    with pytest.raises(RateLimited):
        async with world.calls.run(world.record("broke")):
            raise AssertionError("it was not admitted")
    with pytest.raises(EngineFailed):
        async with world.calls.run(world.record()):
            raise EngineFailed("no more")
    record = world.record()
    with pytest.raises(asyncio.CancelledError):
        async with world.calls.run(record):
            attempt(record, 100.05)
            raise asyncio.CancelledError
    assert world.value(declared.CALLS, "m", "broke", "rate_limit_exceeded") == 1
    assert world.value(declared.CALLS, "m", "acme", "engine_failed") == 1
    assert world.value(declared.CALLS, "m", "acme", "client_left") == 1
    assert world.value(declared.PROMPT_TOKENS, "m", "acme") == 10
    assert world.value(declared.OUTPUT_TOKENS, "m", "acme") == 1
    assert world.value(declared.CALLS_RUNNING, "m") == 0


async def test_a_resumed_streams_prompt_is_not_counted_again() -> None:
    world = World()
    record = world.record()
    record.resume(2, was_charged=True)
    async with world.calls.run(record):
        attempt(record, 100.05, 100.06)
    assert world.value(declared.PROMPT_TOKENS, "m", "acme") == 0
    assert world.value(declared.OUTPUT_TOKENS, "m", "acme") == 2


def test_answers_to_strangers_are_counted_apart() -> None:
    world = World()
    world.meters.answered(Unauthorized())
    world.meters.answered(EngineFailed("no more"))
    assert world.value(declared.ERROR_ANSWERS, "engine_failed") == 1
    assert world.value(declared.ERROR_ANSWERS, Unauthorized.code) == world.value(
        declared.AUTH_FAILURES, Unauthorized.code
    )
    assert world.value(declared.AUTH_FAILURES, "engine_failed") == 0
