"""How a stream goes on when an attempt at it ends too early."""

import asyncio
from typing import Any

import msgspec
import pytest

from cluster.errors import DeadlineExceeded, EngineFailed, PoisonRequest
from cluster.frames import (
    Beat,
    Cancel,
    Condemn,
    Ended,
    Enqueue,
    Failed,
    Grant,
    Move,
    Outcome,
    Pulse,
    ReplicaDown,
    ReplicaUp,
    Submit,
    Tokens,
    Withdraw,
)
from cluster.generation import RequestContext
from engine.request import FinishReason, GenerateRequest, SamplingParams, TokenChunk
from tests.cluster.dispatcher_desk import Desk, RecordingLink, started
from tests.cluster.router_world import engine_info, replica_info


async def test_the_next_attempt_goes_on_behind_the_journal_on_the_same_weights() -> None:
    desk = Desk(num_replicas=2)
    task = await started(desk, prompt=(1, 2, 3), seed=77)
    desk.tokens(0, 5)
    desk.tokens(1, 6)
    desk.lose("r1")
    asked = desk.router.of_kind(Enqueue)[-1]
    assert (asked.attempt, asked.num_prompt_tokens, asked.num_output_tokens, asked.max_tokens) == (1, 5, 2, 7)
    assert (asked.avoid, asked.weights_revision) == (["r1"], "r0")
    assert asked.digest == desk.router.of_kind(Enqueue)[0].digest
    desk.grant("r2", attempt=1)
    request = desk.submitted("r2")
    assert (request.prompt_token_ids, request.output_token_ids, request.attempt) == ([1, 2, 3], [5, 6], 1)
    assert (request.sampling.seed, request.sampling.max_tokens) == (77, 9)
    desk.tokens(2, 99)  # a late frame of the first attempt
    desk.tokens(2, 7, attempt=1, replica_id="r2", finish=FinishReason.STOP)
    await task
    assert desk.seen_ids() == [5, 6, 7]
    ended = desk.router.of_kind(Ended)
    assert [(end.attempt, end.replica_id, end.outcome) for end in ended] == [
        (0, "r1", Outcome.FAILED),
        (1, "r2", Outcome.OK),
    ]
    assert [(end.num_output_tokens, end.finished) for end in ended] == [(2, False), (1, True)]


async def test_before_the_first_token_any_weights_will_do() -> None:
    desk = Desk(num_replicas=2)
    task = await started(desk, prompt_logprobs=0)
    desk.lose("r1")
    assert desk.router.of_kind(Enqueue)[-1].weights_revision == ""
    desk.grant("r2", attempt=1)
    assert desk.submitted("r2").sampling.prompt_logprobs == 0, "they have not come yet"
    desk.tokens(0, 5, attempt=1, replica_id="r2")
    desk.dispatcher.on_replica("r1", RecordingLink())
    desk.lose("r2")
    desk.grant("r1", attempt=2)
    link = desk.dispatcher._peers.connected["r1"].link
    assert isinstance(link, RecordingLink)
    assert link.of_kind(Submit)[-1].request.sampling.prompt_logprobs is None, "they have been delivered"
    desk.tokens(1, 6, attempt=2, finish=FinishReason.STOP)
    await task


async def test_a_replica_of_other_weights_is_not_used() -> None:
    desk = Desk(num_replicas=2)
    other = msgspec.structs.replace(
        replica_info("r2"), engine=msgspec.structs.replace(engine_info(), weights_revision="other")
    )
    desk.dispatcher.on_router_frame(0, ReplicaUp(other))
    task = await started(desk, timeout_s=0.1)
    desk.tokens(0, 5)
    desk.lose("r1")
    desk.grant("r2", attempt=1)
    assert desk.replicas["r2"].sent == []
    assert Withdraw("q", 1) in desk.router.sent
    with pytest.raises(DeadlineExceeded):
        await task


@pytest.mark.parametrize("gap", [False, True])
async def test_what_fails_by_itself_is_tried_once_elsewhere(gap: bool) -> None:
    desk = Desk(num_replicas=2)
    task = await started(desk)

    def fail(**where: Any) -> None:
        if gap:
            desk.tokens(3, 9, **where)
        else:
            desk.tokens(0, finish=FinishReason.ERROR, error="not finite", **where)

    fail()
    assert desk.replica.of_kind(Cancel) == [Cancel("q", 0)]
    desk.grant("r2", attempt=1)
    fail(attempt=1, replica_id="r2")
    with pytest.raises(EngineFailed, match="were lost" if gap else "not finite"):
        await task
    assert [end.outcome for end in desk.router.of_kind(Ended)] == [Outcome.FAILED, Outcome.FAILED]


async def test_a_handed_back_request_goes_on_and_nobody_is_blamed() -> None:
    desk = Desk(num_replicas=2)
    task = await started(desk)
    desk.tokens(0, 5, 6, finish=FinishReason.MIGRATE)
    desk.grant("r2", attempt=1)
    assert desk.submitted("r2").output_token_ids == [5, 6]
    desk.tokens(2, 7, attempt=1, replica_id="r2", finish=FinishReason.LENGTH)
    await task
    assert desk.seen_ids() == [5, 6, 7]
    assert [chunk.finish for chunk in desk.seen] == [None, FinishReason.LENGTH]
    assert [end.outcome for end in desk.router.of_kind(Ended)] == [Outcome.NEUTRAL, Outcome.OK]


async def test_a_refused_attempt_asks_again_after_a_pause() -> None:
    desk = Desk(num_replicas=2)
    task = await started(desk)
    desk.dispatcher.on_replica_frame("r1", Failed("q", 0, "it drains", retryable=True))
    assert len(desk.router.of_kind(Enqueue)) == 1
    await asyncio.sleep(0.06)
    assert desk.router.of_kind(Enqueue)[-1].avoid == ["r1"]
    desk.grant("r2", attempt=1)
    desk.tokens(0, 5, attempt=1, replica_id="r2", finish=FinishReason.STOP)
    await task


@pytest.mark.parametrize(
    ("sampling", "tokens", "finish"),
    [
        ({"max_tokens": 2}, (5, 6), FinishReason.LENGTH),
        ({"stop_token_ids": (6,)}, (5, 6), FinishReason.STOP),
    ],
)
async def test_a_stream_that_lacks_only_the_word_that_it_ended_is_ended(
    sampling: dict[str, Any], tokens: tuple[int, ...], finish: FinishReason
) -> None:
    desk = Desk(num_replicas=2)
    task = await started(desk, **sampling)
    desk.tokens(0, *tokens)
    desk.lose("r1")
    await task
    assert desk.seen[-1].finish is finish and desk.seen_ids() == list(tokens)
    assert len(desk.router.of_kind(Enqueue)) == 1


async def test_what_ends_a_sequence_on_other_weights_ends_no_stream() -> None:
    desk = Desk(num_replicas=2)
    task = await started(desk)
    desk.tokens(0, 5, 6)
    newer = msgspec.structs.replace(engine_info(revision="r1"), eos_token_ids=(6,))
    desk.dispatcher.on_router_frame(0, ReplicaUp(msgspec.structs.replace(replica_info("newer"), engine=newer)))
    desk.lose("r1")
    assert [asked.weights_revision for asked in desk.router.of_kind(Enqueue)] == ["", "r0"]
    task.cancel()


async def test_an_end_token_below_min_tokens_is_no_end() -> None:
    desk = Desk(num_replicas=2)
    task = await started(desk, stop_token_ids=(6,), min_tokens=2)
    desk.tokens(0, 5, 6)
    desk.lose("r1")
    assert len(desk.router.of_kind(Enqueue)) == 2
    task.cancel()


async def test_a_request_that_kills_two_replicas_is_condemned() -> None:
    desk = Desk(num_replicas=3, num_shards=2)
    task = await started(desk)
    desk.lose("r1")
    desk.grant("r2", attempt=1)
    desk.tokens(0, attempt=1, replica_id="r2", finish=FinishReason.MIGRATE, error="segfault")
    with pytest.raises(PoisonRequest, match="not tried again"):
        await task
    digest = desk.router.of_kind(Enqueue)[0].digest if desk.router.of_kind(Enqueue) else b""
    digest = digest or desk.shards[1].of_kind(Enqueue)[0].digest
    assert [shard.of_kind(Condemn) for shard in desk.shards] == [[Condemn(digest)]] * 2


async def test_suspects_are_tried_one_at_a_time_and_only_the_killer_is_condemned() -> None:
    desk = Desk(num_replicas=5)
    tasks = {name: desk.ask(name) for name in "abp"}
    await asyncio.sleep(0)
    for attempt, replica_id in enumerate(("r1", "r2")):
        for name in tasks:
            desk.grant(replica_id, name, attempt)
        desk.lose(replica_id)
    trials = [frame.request_id for frame in desk.router.of_kind(Enqueue) if frame.attempt == 2]
    assert trials == ["a"]
    desk.grant("r3", "a", 2)
    desk.tokens(0, 7, name="a", attempt=2, replica_id="r3", finish=FinishReason.STOP)
    desk.grant("r3", "b", 2)
    desk.tokens(0, 7, name="b", attempt=2, replica_id="r3")
    desk.grant("r3", "p", 2)
    desk.lose("r3")
    with pytest.raises(PoisonRequest):
        await tasks["p"]
    desk.grant("r4", "b", 3)
    desk.tokens(1, 8, name="b", attempt=3, replica_id="r4", finish=FinishReason.STOP)
    await tasks["a"]
    await tasks["b"]
    assert len(desk.router.of_kind(Condemn)) == 1


async def test_a_frozen_replica_is_left_and_used_again_when_it_wakes() -> None:
    desk = Desk(num_replicas=2)
    task = await started(desk)
    desk.tokens(0, 5)
    desk.live(1.0)
    assert len(desk.router.of_kind(Enqueue)) == 1
    desk.live(0.5)
    assert desk.router.of_kind(Enqueue)[-1].avoid == ["r1"]
    assert desk.replica.sent[-1] == Cancel("q", 0)
    desk.grant("r1", attempt=1)
    assert len(desk.replica.of_kind(Submit)) == 1, "nothing is submitted to it"
    desk.dispatcher.on_replica_frame("r1", Tokens(2, [TokenChunk("q", 0, 1, [99])]))
    desk.dispatcher.on_replica_frame("r1", Beat(1, False, 0.0))
    assert desk.router.of_kind(Enqueue)[-1].avoid == []
    desk.grant("r1", attempt=1)
    desk.tokens(1, 6, attempt=1, finish=FinishReason.STOP)
    await task
    assert desk.seen_ids() == [5, 6]


async def test_a_stuck_engine_is_left_though_its_replica_speaks() -> None:
    desk = Desk(num_replicas=2)
    task = await started(desk)
    for _ in range(14):
        desk.live(0.1)
        desk.dispatcher.on_replica_frame("r1", Beat(3, True, 0.1))
    assert desk.router.of_kind(Enqueue)[-1].attempt == 1
    assert desk.router.of_kind(Ended)[-1].outcome is Outcome.FAILED
    task.cancel()


async def test_a_connection_that_gives_nothing_for_long_is_closed() -> None:
    desk = Desk()
    desk.live(9.0)
    assert desk.replica.is_open
    desk.live(1.5)
    assert not desk.replica.is_open


async def test_a_replica_that_no_shard_announces_goes_on_with_what_it_runs() -> None:
    desk = Desk()
    task = await started(desk)
    desk.dispatcher.on_router_frame(0, ReplicaDown("r1"))
    assert desk.dispatcher.replicas == {}
    desk.dispatcher.on_router_lost(0)
    desk.tokens(0, 5, finish=FinishReason.STOP)
    await task
    assert desk.seen_ids() == [5]


def shard_of(desk: Desk) -> int:
    return max(range(len(desk.shards)), key=lambda shard: len(desk.shards[shard].of_kind(Enqueue)))


@pytest.mark.parametrize("silent", [False, True])
async def test_what_waits_at_a_lost_shard_asks_another_at_once(silent: bool) -> None:
    desk = Desk(num_shards=2)
    task = desk.ask()
    await asyncio.sleep(0)
    first = shard_of(desk)
    other = 1 - first
    if silent:
        for shard in (0, 1):
            desk.dispatcher.on_router_frame(shard, Pulse())
        for _ in range(15):
            desk.live(0.1)
            desk.dispatcher.on_router_frame(other, Pulse())
    else:
        desk.dispatcher.on_router_lost(first)
    assert len(desk.shards[other].of_kind(Enqueue)) == 1
    if silent:
        desk.grant(shard=first)  # it wakes
        assert desk.shards[other].of_kind(Withdraw) == [Withdraw("q", 0)]
        again = desk.ask("again")
        await asyncio.sleep(0)
        assert desk.shards[first].of_kind(Enqueue)[-1].request_id == "again"
        again.cancel()
    else:
        desk.grant(shard=other)
    desk.tokens(0, 5, finish=FinishReason.STOP)
    await task
    assert [len(shard.of_kind(Ended)) for shard in desk.shards] == [int(silent == (shard == first)) for shard in (0, 1)]


async def test_without_a_shard_requests_wait_for_one() -> None:
    desk = Desk(num_shards=1)
    desk.dispatcher.on_router_lost(0)
    task = desk.ask()
    await asyncio.sleep(0)
    assert desk.router.of_kind(Enqueue) == []
    back = RecordingLink()
    desk.dispatcher.on_router(0, back)
    assert len(back.of_kind(Enqueue)) == 1
    task.cancel()


async def test_a_moved_request_asks_where_it_was_told() -> None:
    desk = Desk(num_shards=3)
    task = desk.ask()
    await asyncio.sleep(0)
    first = shard_of(desk)
    target = (first + 1) % 3
    desk.dispatcher.on_router_frame(first, Move("q", 0, target))
    desk.dispatcher.on_router_frame(first, Move("q", 0, target))
    [moved] = desk.shards[target].of_kind(Enqueue)
    assert moved.num_moves == 1 and moved.waited_s >= 0.0
    desk.dispatcher.on_router_frame(target, Grant("q", 0, "r1", 1.0))
    desk.tokens(0, 5, finish=FinishReason.STOP)
    await task
    assert len(desk.shards[target].of_kind(Ended)) == 1


async def test_what_waits_where_no_replica_is_left_asks_where_they_are() -> None:
    desk = Desk(num_replicas=1, num_shards=2)
    desk.dispatcher.on_router_frame(0, ReplicaDown("r1"))
    task = desk.ask()
    await asyncio.sleep(0)
    [asked] = desk.shards[1].of_kind(Enqueue)
    assert not asked.is_known
    desk.dispatcher.on_router_frame(0, ReplicaUp(replica_info("r1")))
    assert desk.shards[0].of_kind(Enqueue) == []  # where it waits there is a replica still
    desk.dispatcher.on_router_frame(1, ReplicaDown("r1"))
    assert desk.shards[1].sent[-1] == Withdraw("q", 0)
    [again] = desk.shards[0].of_kind(Enqueue)
    assert again.is_known and again.waited_s >= 0.0
    desk.grant("r1")
    desk.tokens(0, 5, finish=FinishReason.STOP)
    await task


async def test_a_stream_asks_the_shard_that_has_its_weights() -> None:
    desk = Desk(num_replicas=0, num_shards=2)
    for shard, revision in enumerate(("r0", "r1")):
        desk.dispatcher.on_router_frame(shard, ReplicaUp(replica_info(f"of {revision}", revision=revision)))
    stream = desk.dispatcher.stream(
        GenerateRequest(
            request_id="q",
            prompt_token_ids=[1],
            sampling=SamplingParams(max_tokens=9, seed=0),
            attempt=1,
            output_token_ids=[5],
        ),
        RequestContext(model="m", timeout_s=10.0, weights_revision="r0"),
    )
    task = asyncio.create_task(anext(aiter(stream)))
    for first, second in ((0, 1), (1, 0)):
        await asyncio.sleep(0)
        assert desk.shards[first].of_kind(Enqueue) and not desk.shards[second].of_kind(Enqueue)
        desk.shards[first].sent.clear()
        if first == 0:  # its weights are elsewhere now
            desk.dispatcher.on_router_frame(1, ReplicaUp(replica_info("of r0")))
            desk.dispatcher.on_router_frame(0, ReplicaDown("of r0"))
    task.cancel()


async def test_who_is_over_is_no_suspect() -> None:
    desk = Desk(num_replicas=2)
    killer, late = desk.ask("killer"), desk.ask("late")
    await asyncio.sleep(0)
    for attempt, replica_id in enumerate(("r1", "r2")):
        for name in ("killer", "late"):
            desk.grant(replica_id, name, attempt)
        if attempt:
            desk.dispatcher._flights["late"].expire()  # its reader has not come to it yet
        desk.lose(replica_id)
    with pytest.raises(PoisonRequest):
        await killer
    with pytest.raises(DeadlineExceeded):
        await late
