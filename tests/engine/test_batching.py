"""Static and dynamic batches against continuous batching: who joins when, padding, delivery."""

import pytest

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.request import FinishReason
from tests.engine.chain_world import ChainWorld, chain_output, dynamic, engine_info, generate, static


def scheduled_ids(world: ChainWorld, now: float) -> list[int]:
    plan = world.step(now)
    return [] if plan is None else [item.sequence_id for item in plan.scheduled]


def test_a_static_batch_starts_when_full() -> None:
    world = ChainWorld(**static(2))
    world.add(generate("a", [1]), now=0.0)
    assert scheduled_ids(world, 0.5) == []
    world.add(generate("b", [2]), now=0.6)
    assert scheduled_ids(world, 0.6) == [1, 2]


def test_a_static_batch_starts_when_nobody_came_for_the_timeout() -> None:
    world = ChainWorld(**static(3))
    world.add(generate("a", [1]), now=0.0)
    world.add(generate("b", [2]), now=0.9)
    assert scheduled_ids(world, 1.8) == []
    assert world.scheduler.wake_at() == pytest.approx(1.9)
    assert scheduled_ids(world, 1.9) == [1, 2]
    assert world.scheduler.wake_at() is None


def test_a_dynamic_batch_starts_when_its_first_has_waited_for_the_timeout() -> None:
    world = ChainWorld(**dynamic(3))
    world.add(generate("a", [1]), now=0.0)
    world.add(generate("b", [2]), now=0.9)
    assert world.scheduler.wake_at() == pytest.approx(1.0)
    assert scheduled_ids(world, 1.0) == [1, 2]


@pytest.mark.parametrize("settings", [static(2), dynamic(2)])
def test_nobody_joins_a_batch_that_runs(settings: dict[str, object]) -> None:
    world = ChainWorld(**settings)
    for name in ("a", "b", "c"):
        world.add(generate(name, [ord(name) % 13], max_tokens=3), now=0.0)
    assert [scheduled_ids(world, 0.1 * step) for step in range(3)] == [[1, 2]] * 3
    assert scheduled_ids(world, 0.5) == []
    assert scheduled_ids(world, 1.5) == [3]


@pytest.mark.parametrize("settings", [static(3), dynamic(3)])
def test_a_batch_larger_than_the_budget_joins_over_several_steps(settings: dict[str, object]) -> None:
    world = ChainWorld(max_batched_tokens=4, **settings)
    for name in ("a", "b", "c"):
        world.add(generate(name, [ord(name) % 13] * 3, max_tokens=4), now=0.0)
    assert scheduled_ids(world, 0.0) == [1, 2]
    assert scheduled_ids(world, 0.0) == [1, 2, 3]
    world.add(generate("late", [5], max_tokens=1), now=0.0)
    world.run()
    assert "late" not in world.finish
    world.run(now=9.0)
    assert set(world.finish.values()) == {FinishReason.LENGTH}
    world.assert_idle()


@pytest.mark.parametrize("settings", [static(2), dynamic(2)])
def test_the_place_of_one_that_was_aborted_is_not_taken(settings: dict[str, object]) -> None:
    world = ChainWorld(max_batched_tokens=2, **settings)
    world.add(generate("a", [1, 2], max_tokens=4))
    world.add(generate("b", [3, 4], max_tokens=4))
    assert scheduled_ids(world, 0.0) == [1]
    world.abort("b")
    assert scheduled_ids(world, 0.0) == [1]
    world.add(generate("late", [5], max_tokens=1))
    assert scheduled_ids(world, 0.0) == [1]


@pytest.mark.parametrize("settings", [static(2), dynamic(2)])
def test_who_finds_no_blocks_joins_the_next_batch(settings: dict[str, object]) -> None:
    world = ChainWorld(engine_info(num_blocks=7), **settings)
    world.add(generate("a", [1, 2, 3], max_tokens=1), now=0.0)
    world.add(generate("b", [4] * 9, max_tokens=1), now=0.0)
    world.add(generate("c", [5], max_tokens=4), now=0.0)
    world.add(generate("d", [6], max_tokens=4), now=0.0)
    assert scheduled_ids(world, 0.0) == [1]
    assert scheduled_ids(world, 0.0) == [2, 3]


@pytest.mark.parametrize("settings", [static(3), dynamic(3)])
def test_a_closed_batch_stays_closed_when_blocks_get_free(settings: dict[str, object]) -> None:
    world = ChainWorld(engine_info(num_blocks=5), **settings)
    world.add(generate("a", [1, 2, 3], max_tokens=1), now=0.0)
    world.add(generate("b", [4], max_tokens=4), now=0.0)
    world.add(generate("c", [5, 5, 5], max_tokens=1), now=0.0)
    assert scheduled_ids(world, 0.0) == [1, 2]
    assert [scheduled_ids(world, 0.0) for _ in range(3)] == [[2], [2], [2]]


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_static_batch_pays_for_its_longest(order: str) -> None:
    world = ChainWorld(**static(2))
    requests = {"a": generate("a", [1, 2, 3, 4, 5], max_tokens=1), "b": generate("b", [6, 7], max_tokens=4)}
    for name in order:
        world.add(requests[name])
    world.run()
    assert [plan.num_padding_tokens for plan in world.plans] == [3, 1, 1, 1]
    assert [plan.num_tokens for plan in world.plans] == [10, 2, 2, 2]
    world.add(generate("c", [8], max_tokens=1))
    world.add(generate("d", [9, 10], max_tokens=1))
    world.run()
    assert [plan.num_padding_tokens for plan in world.plans[4:]] == [1]


def test_padding_shares_the_token_budget() -> None:
    world = ChainWorld(max_batched_tokens=4, **static(2))
    world.add(generate("a", [1, 2, 3, 4, 5, 6], max_tokens=2))
    world.add(generate("b", [7], max_tokens=6))
    world.run()
    assert [plan.num_tokens for plan in world.plans[:3]] == [4, 4, 4]
    assert sum(plan.num_padding_tokens for plan in world.plans) == 5 + 4  # b's prompt, and a's place after its end
    assert world.finish == {"a": FinishReason.LENGTH, "b": FinishReason.LENGTH}


def test_static_tokens_come_when_the_batch_has_ended_dynamic_ones_at_once() -> None:
    requests = [generate("a", [1], max_tokens=1), generate("b", [2], max_tokens=3, logprobs=0)]
    still, moving = ChainWorld(**static(2)), ChainWorld(**dynamic(2))
    for world in (still, moving):
        for request in requests:
            world.add(request)
        world.step()
    assert (still.read["a"], len(moving.read["a"]), len(moving.read["b"])) == ([], 1, 1)
    for world in (still, moving):
        world.run()
        for request in requests:
            assert (world.read[request.request_id], world.finish[request.request_id]) == chain_output(request)
    assert [len(chunk.token_ids) for chunk in still.chunks["b"]] == [3]
    assert [len(chunk.logprobs or []) for chunk in still.chunks["b"]] == [3]


def test_an_abort_hands_out_what_a_static_batch_kept_back() -> None:
    world = ChainWorld(**static(2))
    for name in ("a", "b"):
        world.add(generate(name, [ord(name) % 13], max_tokens=9))
    world.step()
    world.step()
    world.abort("a")
    assert (len(world.read["a"]), world.finish["a"]) == (2, FinishReason.ABORT)
    assert world.read["b"] == []
    world.run()
    assert len(world.read["b"]) == 9


def test_a_static_batch_ends_when_those_still_to_join_are_aborted() -> None:
    world = ChainWorld(max_batched_tokens=2, **static(2))
    world.add(generate("a", [1, 2], max_tokens=1))
    world.add(generate("b", [3, 4], max_tokens=1))
    world.step()
    world.abort("b")
    assert world.finish == {"a": FinishReason.LENGTH, "b": FinishReason.ABORT}


@pytest.mark.parametrize("settings", [static(4), dynamic(4)])
def test_a_batch_that_does_not_fit_goes_on_as_the_next(settings: dict[str, object]) -> None:
    world = ChainWorld(engine_info(num_blocks=6), **settings)
    requests = [generate(str(i), [i, i, i], max_tokens=5) for i in range(4)]
    for request in requests:
        world.add(request)
    for step in range(200):
        world.step(now=float(step))
    for request in requests:
        assert (world.read[request.request_id], world.finish[request.request_id]) == chain_output(request)
    world.assert_idle()


def test_a_batch_larger_than_the_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        EngineConfig(max_num_seqs=2, **static(3))
