"""Whatever arrives, in whatever order, with however few blocks: the outputs are the chain's and nothing leaks."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import Batching
from engine.request import FinishReason, GenerateRequest
from tests.engine.chain_world import VOCAB_SIZE, ChainWorld, chain_output, engine_info, generate

EOS = (0,)
STEP_S = 0.3  #: between two steps, against a batch timeout of 1 s

prompts = st.one_of(
    st.lists(st.integers(0, 1), min_size=1, max_size=12),  # two tokens only: prefixes are often equal
    st.builds(lambda length, last: [1] * length + [last], st.integers(0, 11), st.integers(0, VOCAB_SIZE - 1)),
)


@dataclass
class Arrival:
    at_step: int
    prompt: list[int]
    max_tokens: int
    fields: dict[str, Any] = field(default_factory=dict)
    abort_at_step: int | None = None
    restart_after: int | None = None  #: tokens read after which the request moves to a new attempt


arrivals = st.lists(
    st.builds(
        Arrival,
        at_step=st.integers(0, 12),
        prompt=prompts,
        max_tokens=st.integers(1, 8),
        fields=st.fixed_dictionaries(
            {},
            optional={
                "priority": st.integers(0, 2),
                "ignore_eos": st.booleans(),
                "min_tokens": st.integers(0, 4),
                "stop_token_ids": st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=2).map(tuple),
                "cache_salt": st.sampled_from(["", "x"]),
                "prompt_logprobs": st.just(0),
            },
        ),
        abort_at_step=st.none() | st.integers(0, 20),
        restart_after=st.none() | st.integers(1, 4),
    ),
    min_size=1,
    max_size=10,
)

engines = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(10, 24),  # the longest request needs ten
        "max_num_seqs": st.integers(1, 6),
        "max_batched_tokens": st.integers(1, 16),
        "prefix_caching": st.booleans(),
        "max_steps_in_flight": st.integers(1, 3),
    }
)


def build(engine: dict[str, Any], **more: Any) -> ChainWorld:
    sizes = {key: engine[key] for key in ("num_blocks", "max_num_seqs", "max_steps_in_flight")}
    rest = {key: engine[key] for key in engine.keys() - sizes.keys()}
    return ChainWorld(engine_info(**sizes, eos=EOS), **(rest | more))


def play(world: ChainWorld, all_arrivals: list[Arrival]) -> dict[str, GenerateRequest]:
    """Let everything arrive, be aborted and be restarted while the engine steps; returns the requests."""
    requests: dict[str, GenerateRequest] = {}
    restarts = {str(i): arrival.restart_after for i, arrival in enumerate(all_arrivals)}
    for step in range(2_000):
        now = step * STEP_S
        for i, arrival in enumerate(all_arrivals):
            if arrival.at_step == step:
                requests[str(i)] = generate(str(i), arrival.prompt, arrival.max_tokens, **arrival.fields)
                world.add(requests[str(i)], now)
            if arrival.abort_at_step == step and str(i) in requests:
                world.abort(str(i))
        plan = world.step(now)
        for name, after in restarts.items():
            read = world.read.get(name, [])
            if after is not None and name not in world.finish and len(read) >= after:
                restarts[name] = None
                restart(world, requests[name], list(read), now)
        if plan is None and len(requests) == len(all_arrivals) and len(world.finish) == len(requests):
            return requests
    raise AssertionError(f"only {sorted(world.finish)} of {sorted(requests)} have ended")


def restart(world: ChainWorld, request: GenerateRequest, read: list[int], now: float) -> None:
    """What a gateway does when it gives up an attempt: a new one that goes on after the tokens read."""
    again = generate(
        request.request_id,
        request.prompt_token_ids,
        request.sampling.max_tokens,
        attempt=request.attempt + 1,
        output_token_ids=read,
        priority=request.priority,
        cache_salt=request.cache_salt,
        **{key: getattr(request.sampling, key) for key in ("ignore_eos", "min_tokens", "stop_token_ids")},
    )
    world.scheduler.add(again, now)
    world.scheduler.check_invariants()


def assert_exact(world: ChainWorld, requests: dict[str, GenerateRequest]) -> None:
    for name, request in requests.items():
        whole, finish = chain_output(request, EOS)
        if world.finish[name] is FinishReason.ABORT:
            assert world.read[name] == whole[: len(world.read[name])]
        else:
            assert (world.read[name], world.finish[name]) == (whole, finish)
    world.assert_idle()


@settings(max_examples=300, deadline=None)
@given(engine=engines, all_arrivals=arrivals, smallest_share=st.sampled_from([1, 128]))
def test_continuous_batching_is_exact_and_leaks_nothing(
    engine: dict[str, Any], all_arrivals: list[Arrival], smallest_share: int
) -> None:
    world = build(engine)
    with mock.patch(
        "engine.scheduler._WORTH_A_STEP", smallest_share
    ):  # these prompts are short: divide them all the same
        assert_exact(world, play(world, all_arrivals))


@settings(max_examples=100, deadline=None)
@given(
    engine=engines,
    all_arrivals=arrivals,
    batching=st.sampled_from([Batching.STATIC, Batching.DYNAMIC]),
    data=st.data(),
)
def test_batches_are_exact_and_leak_nothing(
    engine: dict[str, Any], all_arrivals: list[Arrival], batching: Batching, data: st.DataObject
) -> None:
    batch_size = data.draw(st.integers(1, engine["max_num_seqs"]))
    world = build(engine, batching=batching, batch_size=batch_size, batch_timeout_s=1.0)
    for arrival in all_arrivals:
        arrival.restart_after = None if batching is Batching.STATIC else arrival.restart_after
    assert_exact(world, play(world, all_arrivals))


@settings(max_examples=100, deadline=None)
@given(engine=engines, all_arrivals=arrivals)
def test_inside_a_priority_nobody_starts_before_an_earlier_one(
    engine: dict[str, Any], all_arrivals: list[Arrival]
) -> None:
    """No starvation: without equal prefixes to wait for, first computation is in the order of arrival."""
    world = build(engine, prefix_caching=False)
    for arrival in all_arrivals:
        arrival.abort_at_step = arrival.restart_after = None
        arrival.fields.pop("priority", None)
    play(world, all_arrivals)
    started = [new.sequence_id for plan in world.plans for new in plan.new_sequences]
    first_starts = list(dict.fromkeys(started))
    assert first_starts == sorted(first_starts)


@settings(max_examples=100, deadline=None)
@given(engine=engines, all_arrivals=arrivals)
def test_the_first_in_the_order_of_service_advances_in_every_step(
    engine: dict[str, Any], all_arrivals: list[Arrival]
) -> None:
    """So every request ends, however small the cache: the oldest of the most urgent is never preempted.

    With several steps under way it may be missing in the others of a round.
    """
    world = build(engine)
    for arrival in all_arrivals:
        arrival.at_step, arrival.abort_at_step, arrival.restart_after = 0, None, None
    requests = play(world, all_arrivals)
    order = sorted(range(len(all_arrivals)), key=lambda i: (requests[str(i)].priority, i))
    first = order[0] + 1
    steps = [index for index, plan in enumerate(world.plans) if any(s.sequence_id == first for s in plan.scheduled)]
    assert steps[0] == 0
    assert all(after - before <= engine["max_steps_in_flight"] for before, after in pairwise(steps))
    assert all(first not in plan.dropped_ids for plan in world.plans[: steps[-1] + 1])
