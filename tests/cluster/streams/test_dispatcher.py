"""The dispatcher's journal: what a reader may see of what arrives, and what is said to router and replica."""

import asyncio

import pytest

from cluster.errors import DeadlineExceeded, EngineFailed, Overloaded, PoisonRequest
from cluster.frames import Cancel, Enqueue, Failed, Grant, Refuse, Submit, Withdraw
from engine.request import FinishReason
from tests.cluster.dispatcher_desk import Desk, started
from tests.cluster.router_world import engine_info


async def test_descriptor_to_the_router_prompt_to_the_replica() -> None:
    desk = Desk()
    task = await started(desk)
    asked = desk.router.sent[0]
    assert isinstance(asked, Enqueue) and (asked.request_id, asked.model, asked.num_prompt_tokens) == ("q", "m", 1)
    [submitted] = desk.replica.sent
    assert isinstance(submitted, Submit) and submitted.request.prompt_token_ids == [1]
    desk.tokens(0, 5, 6)
    desk.tokens(2, 7, finish=FinishReason.STOP)
    await task
    assert desk.seen_ids() == [5, 6, 7] and desk.dispatcher.num_in_flight == 0


async def test_repeated_and_foreign_chunks_are_dropped() -> None:
    desk = Desk()
    task = await started(desk)
    desk.tokens(0, 5)
    desk.tokens(0, 5)
    desk.tokens(1, 99, attempt=1)
    desk.tokens(1, 6, finish=FinishReason.LENGTH)
    await task
    assert desk.seen_ids() == [5, 6]


async def test_without_another_replica_a_gap_is_an_error() -> None:
    desk = Desk()
    task = await started(desk)
    desk.tokens(0, 5)
    desk.tokens(2, 7)
    desk.tokens(3, 8)
    with pytest.raises(EngineFailed, match="tokens 1 to 1"):
        await task
    assert desk.replica.sent[-1] == Cancel("q", 0)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("server_is_overloaded", Overloaded),
        ("deadline_exceeded", DeadlineExceeded),
        ("poison_request", PoisonRequest),
    ],
)
async def test_the_routers_refusal_is_raised_with_its_retry_after(code: str, error: type[Exception]) -> None:
    desk = Desk()
    task = desk.ask()
    await asyncio.sleep(0)
    desk.dispatcher.on_router_frame(0, Refuse("q", 0, code, "no", 3.0))
    with pytest.raises(error) as caught:
        await task
    assert getattr(caught.value, "retry_after_s", None) == 3.0


async def test_the_engines_errors_are_raised() -> None:
    desk = Desk()
    task = await started(desk)
    desk.dispatcher.on_replica_frame("r1", Failed("q", 0, "cannot"))
    with pytest.raises(EngineFailed, match="cannot"):
        await task


async def test_tokens_before_an_error_are_still_read() -> None:
    desk = Desk()
    task = await started(desk)
    desk.tokens(0, 5)
    desk.dispatcher.on_replica_frame("r1", Failed("q", 0, "cannot"))
    with pytest.raises(EngineFailed, match="cannot"):
        await task
    assert desk.seen_ids() == [5]


async def test_leaving_before_the_grant_withdraws() -> None:
    desk = Desk()
    task = desk.ask()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert desk.router.sent[-1] == Withdraw("q", 0)


async def test_a_grant_that_cannot_be_used_goes_back_and_is_asked_for_again() -> None:
    desk = Desk()
    desk.replica.is_open = False
    task = await started(desk)
    assert desk.router.sent[-1] == Withdraw("q", 0) and desk.replica.sent == []
    desk.replica.is_open = True
    await asyncio.sleep(0.08)
    assert isinstance(desk.router.sent[-1], Enqueue)
    desk.dispatcher.on_router_frame(0, Grant("q", 0, "r1", 1.0))
    desk.tokens(0, 5, finish=FinishReason.STOP)
    await task
    assert desk.seen_ids() == [5]


async def test_a_grant_for_nobody_goes_back() -> None:
    desk = Desk()
    desk.dispatcher.on_router_frame(0, Grant("gone", 0, "r1", 1.0))
    assert desk.router.sent == [Withdraw("gone", 0)]


async def test_model_facts_outlive_the_replicas() -> None:
    desk = Desk()
    assert desk.dispatcher.model_info("other") is None
    desk.dispatcher.on_replica_lost("r1")
    assert desk.dispatcher.model_info("m") == engine_info()


async def test_a_passed_deadline_is_raised() -> None:
    desk = Desk()
    with pytest.raises(DeadlineExceeded):
        await desk.ask(timeout_s=0.02)
