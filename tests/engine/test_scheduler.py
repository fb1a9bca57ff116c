"""What single steps do, computed by hand: blocks of 2 tokens, a vocabulary of 13."""

from typing import Any

import pytest

from engine.errors import RequestRefused
from engine.request import FinishReason, TokenLogprobs
from engine.step import SampledToken, ScheduledSequence, StepPlan, StepResult
from tests.engine.chain_world import ChainWorld, chain_output, engine_info, generate


def shape(plan: StepPlan | None) -> list[tuple[int, int, int, bool]]:
    """Who computes what: (sequence, start, number of tokens, samples)."""
    assert plan is not None
    return [(s.sequence_id, s.start, s.num_tokens, s.samples) for s in plan.scheduled]


def test_one_request_from_prompt_to_end() -> None:
    world = ChainWorld()
    world.add(generate("a", [1, 2, 3], max_tokens=2))
    first = world.step()
    assert first is not None
    assert first.scheduled == [ScheduledSequence(1, 0, 3, [1, 2], True)]
    assert first.new_sequences[0].token_ids == [1, 2, 3]
    second = world.step()
    assert second is not None
    assert (second.scheduled, second.new_sequences) == ([ScheduledSequence(1, 3, 1, [], True)], [])
    assert world.step() is None
    assert (world.read["a"], world.finish["a"]) == chain_output(generate("a", [1, 2, 3], max_tokens=2))
    world.assert_idle()
    world.add(generate("b", [1]))
    third = world.step()
    assert third is not None
    assert third.dropped_ids == [1]


def test_the_plan_does_not_share_lists_with_the_scheduler() -> None:
    world = ChainWorld()
    request = generate("a", [1, 2, 3])
    world.add(request)
    plan = world.step()
    assert plan is not None
    plan.new_sequences[0].token_ids.append(7)
    plan.scheduled[0].new_block_ids.append(7)
    world.run()
    assert world.read["a"] == chain_output(request)[0]
    assert request.prompt_token_ids == [1, 2, 3]


def test_decodes_come_first_and_long_prompts_get_the_rest_of_the_budget() -> None:
    world = ChainWorld(max_batched_tokens=4)
    world.add(generate("long", list(range(10)), max_tokens=1))
    assert shape(world.step()) == [(1, 0, 4, False)]
    world.add(generate("short", [1], max_tokens=5))
    assert shape(world.step()) == [(1, 4, 4, False)]
    assert shape(world.step()) == [(1, 8, 2, True), (2, 0, 1, True)]
    world.add(generate("next", [9] * 8, max_tokens=1))
    assert shape(world.step()) == [(2, 1, 1, True), (3, 0, 3, False)]
    assert shape(world.step()) == [(2, 2, 1, True), (3, 3, 3, False)]
    world.run()
    assert world.finish == dict.fromkeys(("long", "short", "next"), FinishReason.LENGTH)


def test_sequences_join_while_others_run() -> None:
    world = ChainWorld()
    world.add(generate("a", [1, 2], max_tokens=3))
    assert shape(world.step()) == [(1, 0, 2, True)]
    world.add(generate("b", [3], max_tokens=3))
    assert shape(world.step()) == [(1, 2, 1, True), (2, 0, 1, True)]
    assert shape(world.step()) == [(1, 3, 1, True), (2, 1, 1, True)]
    assert shape(world.step()) == [(2, 2, 1, True)]


def test_lower_priority_numbers_are_served_first_then_arrival() -> None:
    world = ChainWorld(engine_info(max_num_seqs=1))
    for name, priority in (("a", 1), ("b", 0), ("c", 1), ("d", 0)):
        world.add(generate(name, [1], max_tokens=1, priority=priority))
    world.run()
    assert list(world.finish) == ["b", "d", "a", "c"]


def test_a_prefix_of_a_running_sequence_is_shared() -> None:
    world = ChainWorld()
    world.add(generate("a", [1, 2, 3, 4, 5], max_tokens=4))
    world.step()
    world.add(generate("b", [1, 2, 3, 4, 6], max_tokens=1))
    plan = world.step()
    assert shape(plan) == [(1, 5, 1, True), (2, 4, 1, True)]
    assert plan is not None
    assert plan.scheduled[1].new_block_ids[:2] == [1, 2]
    assert world.chunks["b"][0].num_cached_tokens == 4
    world.run()
    load = world.scheduler.load()
    assert (load.num_cached_tokens, load.num_prompt_tokens, load.num_output_tokens) == (4, 10, 5)


def test_equal_prompts_that_come_together_are_computed_once() -> None:
    world = ChainWorld()
    for name, last in (("a", 5), ("b", 6), ("c", 7)):
        world.add(generate(name, [1, 2, 3, 4, last], max_tokens=1))
    world.add(generate("other", [9], max_tokens=1))
    assert shape(world.step()) == [(1, 0, 5, True), (4, 0, 1, True)]
    assert shape(world.step()) == [(2, 4, 1, True), (3, 4, 1, True)]


def test_who_waits_for_a_prefix_keeps_its_place() -> None:
    """With two slots, the second of two equal prompts keeps the second slot from a later one."""
    world = ChainWorld(engine_info(max_num_seqs=2))
    for name, prompt in (("a", [1, 2, 3]), ("b", [1, 2, 4]), ("c", [9])):
        world.add(generate(name, prompt, max_tokens=3))
    assert shape(world.step()) == [(1, 0, 3, True)]
    assert shape(world.step()) == [(1, 3, 1, True), (2, 2, 1, True)]


def test_prompt_logprobs_need_the_whole_prompt_and_come_with_the_first_chunk() -> None:
    world = ChainWorld(max_batched_tokens=3)
    world.add(generate("a", [1, 2, 3, 4, 5], max_tokens=2))
    world.run()
    world.add(generate("b", [1, 2, 3, 4, 5], max_tokens=2, prompt_logprobs=0))
    world.run()
    assert [chunk.num_cached_tokens for chunk in world.chunks["b"]] == [0, 0]
    first, second = (chunk.prompt_logprobs for chunk in world.chunks["b"])
    assert first is not None
    assert first[0] is None
    assert [type(entry) for entry in first[1:]] == [TokenLogprobs] * 4
    assert second is None


def preempted_world(**settings: Any) -> ChainWorld:
    """Two sequences of 3 tokens in 5 blocks: both fit at first, and need 4 blocks each in the end."""
    world = ChainWorld(engine_info(num_blocks=5), **settings)
    world.add(generate("a", [1, 2, 3], max_tokens=5))
    world.add(generate("b", [4, 5, 6], max_tokens=5))
    return world


def test_the_last_to_arrive_is_preempted_and_goes_on_where_it_was() -> None:
    world = preempted_world()
    assert shape(world.step()) == [(1, 0, 3, True), (2, 0, 3, True)]
    assert shape(world.step()) == [(1, 3, 1, True), (2, 3, 1, True)]
    plan = world.step()  # both want a third block, one is left
    assert shape(plan) == [(1, 4, 1, True)]
    assert plan is not None
    assert plan.dropped_ids == [2]
    load = world.scheduler.load()
    assert (load.num_running, load.num_waiting, load.num_preemptions) == (1, 1, 1)
    world.run()
    assert world.read["b"] == chain_output(generate("b", [4, 5, 6], max_tokens=5))[0]
    resent = [new for plan in world.plans for new in plan.new_sequences if new.sequence_id == 2][1]
    assert (resent.token_ids[:3], resent.num_prompt_tokens) == ([4, 5, 6], 3)
    assert len(resent.token_ids) == 5
    load = world.scheduler.load()
    assert (load.num_prompt_tokens, load.num_output_tokens) == (6, 10)
    world.assert_idle()


def test_what_is_computed_again_after_a_preemption_is_counted() -> None:
    world = preempted_world(prefix_caching=False)
    for _ in range(3):
        world.step()
    assert world.scheduler.load().num_recomputed_tokens == 0  # `b` has lost its four positions, and waits
    world.run()
    assert world.scheduler.load().num_recomputed_tokens == 4


def test_the_load_tells_how_much_output_may_still_come() -> None:
    world = preempted_world()
    assert world.scheduler.load().remaining_tokens == 10
    for _ in range(3):
        world.step()
    assert world.scheduler.load().remaining_tokens == 2 + 3  # the preempted one counts too
    world.add(generate("c", [1], max_tokens=9, output_token_ids=[5, 6]))
    assert world.scheduler.load().remaining_tokens == 2 + 3 + 7
    world.abort("b")
    assert world.scheduler.load().remaining_tokens == 2 + 7


def test_a_more_urgent_late_comer_preempts_the_less_urgent() -> None:
    world = ChainWorld(engine_info(num_blocks=5))
    world.add(generate("a", [1, 2, 3], max_tokens=5, priority=1))
    world.step()
    world.add(generate("b", [4, 5, 6], max_tokens=5, priority=0))
    world.run()
    assert list(world.finish) == ["b", "a"]
    assert world.scheduler.load().num_preemptions == 1
    assert world.read["a"] == chain_output(generate("a", [1, 2, 3], max_tokens=5))[0]


def test_prompt_logprobs_start_again_after_preemption() -> None:
    """`b` is preempted with half of its prompt computed, by `a`, which is more urgent."""
    world = ChainWorld(engine_info(num_blocks=6), max_batched_tokens=2)
    world.add(generate("a", [1, 2, 3], max_tokens=7, priority=0))
    world.step()
    world.add(generate("b", [4, 5, 6, 7, 8, 9], max_tokens=1, priority=1, prompt_logprobs=0))
    world.run()
    assert world.scheduler.load().num_preemptions == 1
    assert [len(chunk.prompt_logprobs or []) for chunk in world.chunks["b"]] == [6]


def test_admission_leaves_a_spare_block_for_each_running_sequence() -> None:
    world = ChainWorld(engine_info(num_blocks=4))
    world.add(generate("a", [1, 2, 3], max_tokens=2))
    world.step()
    world.add(generate("b", [4, 5, 6], max_tokens=1))
    assert shape(world.step()) == [(1, 3, 1, True)]
    assert shape(world.step()) == [(2, 0, 3, True)]


def test_nobody_overtakes_one_that_finds_no_blocks() -> None:
    world = ChainWorld(engine_info(num_blocks=5))
    world.add(generate("a", [1, 2, 3], max_tokens=3))
    world.step()
    world.add(generate("big", [4] * 7, max_tokens=1))
    world.add(generate("small", [5], max_tokens=1))
    world.run()
    assert list(world.finish) == ["a", "big", "small"]


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_abort_frees_everything_within_the_step(num_steps: int) -> None:
    world = ChainWorld(max_batched_tokens=4)
    world.add(generate("a", [1, 2, 3, 4, 5], max_tokens=5))
    for _ in range(num_steps):
        world.step()
    world.abort("a")
    assert world.finish["a"] is FinishReason.ABORT
    world.assert_idle()
    world.abort("a")
    world.abort("unknown")
    world.add(generate("b", [1], max_tokens=1))
    plan = world.step()
    assert plan is not None
    assert plan.dropped_ids == ([1] if num_steps else [])


def test_a_result_for_an_aborted_sequence_is_dropped() -> None:
    world = ChainWorld()
    world.add(generate("a", [1, 2, 3]))
    world.add(generate("b", [4, 5, 6]))
    plan = world.scheduler.schedule(0.0)
    assert plan is not None
    world.abort("a")
    world.take(world.scheduler.update(world.executor.execute(plan)))
    world.run()
    assert world.read["a"] == []
    assert (world.read["b"], world.finish["b"]) == chain_output(generate("b", [4, 5, 6]))


EOS = chain_output(generate("", [1, 2], max_tokens=4))[0][3]


@pytest.mark.parametrize(
    "fields",
    [{}, {"stop_token_ids": (EOS,), "ignore_eos": True}, {"ignore_eos": True}, {"min_tokens": 4}, {"min_tokens": 9}],
)
def test_eos_stop_tokens_and_min_tokens(fields: dict[str, Any]) -> None:
    world = ChainWorld(engine_info(eos=(EOS,)))
    request = generate("a", [1, 2], max_tokens=9, **fields)
    world.add(request)
    world.run()
    assert (world.read["a"], world.finish["a"]) == chain_output(request, eos=(EOS,))
    if fields.keys() <= {"stop_token_ids"}:
        assert world.read["a"][-1] == EOS
    if "min_tokens" in fields:
        assert len(world.read["a"]) > 4


@pytest.mark.parametrize("num_emitted", [1, 4])
def test_a_later_attempt_goes_on_at_its_index(num_emitted: int) -> None:
    request = generate("a", [1, 2, 3], max_tokens=5)
    whole, finish = chain_output(request)
    world = ChainWorld()
    world.add(generate("a", [1, 2, 3], max_tokens=5, attempt=1, output_token_ids=whole[:num_emitted]))
    world.run()
    assert (world.read["a"], world.finish["a"]) == (whole, finish)
    assert world.chunks["a"][0].index == num_emitted
    assert world.plans[0].new_sequences[0].num_prompt_tokens == 3
    assert world.scheduler.load().num_prompt_tokens == 3


def test_a_newer_attempt_ends_the_older_and_an_older_is_refused() -> None:
    world = ChainWorld()
    world.add(generate("a", [1, 2], attempt=1))
    (last,) = world.scheduler.add(generate("a", [1, 2], attempt=2), 0.0)
    assert (last.attempt, last.finish) == (1, FinishReason.ABORT)
    for attempt in (1, 2):
        with pytest.raises(RequestRefused, match="attempt 2 of it is here"):
            world.scheduler.add(generate("a", [1, 2], attempt=attempt), 0.0)
    assert world.scheduler.abort("a", attempt=1) == []
    assert world.scheduler.load().num_accepted == 4
    assert [chunk.attempt for chunk in world.scheduler.abort("a", attempt=2)] == [2]


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (generate("a", []), "empty"),
        (generate("a", [1], max_tokens=2, output_token_ids=[1, 2]), "generated already"),
        (generate("a", [1] * 500, max_tokens=13), "the model holds 512"),
        (generate("a", [1] * 60, max_tokens=6), "the KV cache holds 64"),
        (generate("a", [13]), "vocabulary of 13"),
        (generate("a", [-1]), "vocabulary of 13"),
    ],
)
def test_what_can_never_run_is_refused(request_: Any, why: str) -> None:
    with pytest.raises(RequestRefused, match=why):
        ChainWorld().add(request_)


def test_a_request_that_just_fits_runs() -> None:
    world = ChainWorld()
    world.add(generate("a", [1] * 60, max_tokens=5))  # 64 tokens in 32 blocks, the 65th is never computed
    world.run()
    assert len(world.read["a"]) == 5


def test_logits_that_are_not_finite_end_their_sequence_only() -> None:
    world = ChainWorld()
    world.add(generate("bad", [1, 2, 3], max_tokens=4))
    world.add(generate("good", [4, 5, 6], max_tokens=4))
    plan = world.scheduler.schedule(0.0)
    assert plan is not None
    result = world.executor.execute(plan)
    broken = SampledToken(1, 0, error="logits are not finite")
    world.take(world.scheduler.update(StepResult(result.step, [broken, result.sampled[1]])))
    world.scheduler.check_invariants()
    assert world.finish == {"bad": FinishReason.ERROR}
    assert world.chunks["bad"][0].error == "logits are not finite"
    world.run()
    assert world.read["good"] == chain_output(generate("good", [4, 5, 6], max_tokens=4))[0]


def test_blocks_of_a_sequence_with_broken_logits_are_not_shared() -> None:
    world = ChainWorld(max_batched_tokens=2)
    world.add(generate("bad", [1, 2, 3], max_tokens=4))
    world.step()
    plan = world.scheduler.schedule(0.0)
    assert plan is not None
    world.take(world.scheduler.update(StepResult(plan.step, [SampledToken(1, 0, error="logits are not finite")])))
    world.executor.execute(plan)
    world.add(generate("again", [1, 2, 3], max_tokens=1))
    world.run()
    assert world.chunks["again"][0].num_cached_tokens == 0


def test_load_tells_what_waits_and_what_is_free() -> None:
    world = ChainWorld(engine_info(num_blocks=8, max_num_seqs=2), max_batched_tokens=4)
    for name in ("a", "b", "c"):
        world.add(generate(name, [ord(name) % 13] * 5, max_tokens=2))
    world.step()
    load = world.scheduler.load()
    assert (load.step, load.num_running, load.num_waiting, load.free_slots) == (1, 1, 2, 0)
    assert load.free_blocks == 0  # 5 free, 6 wanted by those who wait
    assert load.queued_tokens == 10
    world.run()
    world.assert_idle()
