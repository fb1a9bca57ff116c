"""Several steps under way, as pipeline stages need them: what each takes, and who must wait for what."""

from typing import Any

import pytest

from engine import scheduler
from engine.request import FinishReason
from engine.step import StepPlan
from tests.engine.chain_world import ChainWorld, chain_output, engine_info, generate


def world_of(stages: int, num_blocks: int = 64, max_num_seqs: int = 16, **settings: Any) -> ChainWorld:
    return ChainWorld(
        engine_info(num_blocks=num_blocks, max_num_seqs=max_num_seqs, max_steps_in_flight=stages), **settings
    )


def tokens_of(plan: StepPlan) -> dict[int, int]:
    return {item.sequence_id: item.num_tokens for item in plan.scheduled}


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_each_step_takes_an_even_share_of_the_sequences_and_the_pipeline_is_full(stages: int) -> None:
    world = world_of(stages)
    for index in range(10):
        world.add(generate(str(index), [index], max_tokens=30))
    world.step()  # all prompts at once: together they are not worth two steps
    for _ in range(3 * stages):
        world.step()
        assert len(world.under_way) == stages - 1  # one of them has just come back
    sizes = [len(plan.scheduled) for plan in world.plans[-2 * stages :]]
    assert (max(sizes), sum(sizes)) == (-(-10 // stages), 20)
    for index in range(0, 10, 2):
        world.abort(str(index))
    for _ in range(3 * stages):
        world.step()
    sizes = [len(plan.scheduled) for plan in world.plans[-stages:]]
    assert (max(sizes), sum(sizes)) == (-(-5 // stages), 5)


def test_a_sequence_waits_for_its_token_and_others_join_meanwhile() -> None:
    world = world_of(2)
    world.add(generate("a", [1, 2, 3], max_tokens=3))
    world.step()
    assert len(world.plans) == 1
    assert world.scheduler.schedule(0.0).scheduled[0].start == 3  # type: ignore[union-attr]
    assert world.scheduler.schedule(0.0) is None
    world.add(generate("b", [4, 5], max_tokens=3))
    plan = world.scheduler.schedule(0.0)
    assert plan is not None
    assert tokens_of(plan) == {2: 2}
    assert world.scheduler.schedule(0.0) is None  # two are under way


def test_a_prompt_is_divided_over_the_stages_and_its_chunks_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "_WORTH_A_STEP", 4)
    world = world_of(3)
    world.add(generate("a", [i % 13 for i in range(18)], max_tokens=2))
    world.step()
    assert [tokens_of(plan) for plan in world.plans] == [{1: 6}, {1: 6}, {1: 6}]
    assert [plan.scheduled[0].samples for plan in world.plans] == [False, False, True]
    world.run()
    assert world.read["a"] == chain_output(generate("a", [i % 13 for i in range(18)], max_tokens=2))[0]
    world.assert_idle()


def test_a_short_prompt_is_not_divided() -> None:
    world = world_of(2)
    world.add(generate("a", [1] * scheduler._WORTH_A_STEP, max_tokens=1))
    world.step()
    assert len(world.plans) == 1


def test_nobody_in_a_step_under_way_is_preempted() -> None:
    """Two sequences of 3 tokens in 5 blocks need 4 blocks each in the end; the second is under way when it matters."""
    world = world_of(2, num_blocks=5)
    requests = [generate("a", [1, 2, 3], max_tokens=5), generate("b", [4, 5, 6], max_tokens=5)]
    for request in requests:
        world.add(request)
    for _ in range(200):
        if world.step() is None:
            break
        under_way = {item.sequence_id for plan in world.under_way for item in plan.scheduled}
        running = {sequence.sequence_id for sequence in world.scheduler._running}
        assert under_way <= running
    assert world.scheduler.load().num_preemptions > 0
    for request in requests:
        assert (world.read[request.request_id], world.finish[request.request_id]) == chain_output(request)
    world.assert_idle()


def test_an_aborted_sequence_gives_its_blocks_to_one_that_is_computed_after_it() -> None:
    world = world_of(2, num_blocks=4)
    world.add(generate("a", [1] * 7, max_tokens=2))
    plan = world.scheduler.schedule(0.0)
    assert plan is not None
    world.submit(plan)
    world.abort("a")
    follower = generate("b", [2] * 7, max_tokens=2)
    world.add(follower)
    world.run()
    assert [plan.dropped_ids for plan in world.plans[:2]] == [[], [1]]
    assert (world.read["a"], world.finish["a"]) == ([], FinishReason.ABORT)
    assert (world.read["b"], world.finish["b"]) == chain_output(follower)
    world.assert_idle()


def test_what_is_handed_back_gets_no_more_tokens_and_the_engine_goes_on() -> None:
    world = world_of(3)
    for name in "abc":
        world.add(generate(name, [ord(name) % 13], max_tokens=9))
    world.step()
    world.step()
    world.take(world.scheduler.hand_back())
    assert set(world.finish.values()) == {FinishReason.MIGRATE}
    world.run()
    assert not world.under_way
    world.assert_idle()
    world.add(generate("d", [1]))
    world.run()
    assert world.finish["d"] is FinishReason.LENGTH


def test_a_dead_engine_hands_back_and_waits_for_no_result() -> None:
    world = world_of(2)
    world.add(generate("a", [1]))
    world.scheduler.schedule(0.0)
    world.take(world.scheduler.hand_back("a rank is gone"))
    assert (world.scheduler.num_in_flight, world.finish) == (0, {"a": FinishReason.MIGRATE})
