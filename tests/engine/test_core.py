"""The three verbs in their order."""

import pytest

from engine.request import FinishReason
from engine.step import StepPlan, StepResult
from tests.engine.chain_world import ChainWorld, chain_output, generate


def test_a_step_schedules_executes_and_updates() -> None:
    world = ChainWorld()
    assert world.core.step(0.0) is None
    world.add(generate("a", [1, 2, 3], max_tokens=1))
    chunks = world.core.step(0.0)
    assert chunks is not None
    assert [(chunk.token_ids, chunk.finish) for chunk in chunks] == [
        (chain_output(generate("a", [1, 2, 3], max_tokens=1))[0], FinishReason.LENGTH)
    ]
    assert [plan.step for plan in world.plans] == [1]
    assert world.core.step(0.0) is None


def test_what_the_executor_raises_goes_through_and_everything_can_still_be_answered() -> None:
    world = ChainWorld()
    world.add(generate("running", [1, 2, 3]))
    world.step()
    world.add(generate("waiting", [4] * 3))

    def fail(plan: StepPlan) -> StepResult:
        raise RuntimeError("the rank is gone")

    world.execute = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the rank is gone"):
        world.core.step(0.0)
    world.add(generate("late", [5] * 3))
    world.take(world.scheduler.hand_back("no rank"))
    assert set(world.finish.values()) == {FinishReason.MIGRATE}
    errors = {name: chunks[-1].error for name, chunks in world.chunks.items()}
    assert errors == {"running": "no rank", "waiting": "no rank", "late": ""}  # who only waits has killed nobody
    world.assert_idle()
