"""Cost models: fits find the constants that made the steps, files are read with clear errors."""

import random
from pathlib import Path

import msgspec
import pytest

from deployments.simulation.cost_model import (
    MeasuredStep,
    contents,
    fit_steps,
    read_cost_model,
    shipped_names,
    write_cost_model,
)
from engine.errors import ConfigError
from engine.step import ScheduledSequence, StepPlan
from tests.deployments.simulation.simulated_cluster import COST


def measured_steps(num_steps: int = 200) -> list[MeasuredStep]:
    rng = random.Random(1)
    steps = []
    for _ in range(num_steps):
        decodes, prefill, context = rng.randint(1, 32), rng.choice((0, 0, rng.randint(2, 512))), rng.randint(1, 20_000)
        steps.append(MeasuredStep(decodes, prefill, context, 0.004 + 3e-4 * decodes + 6e-5 * prefill + 5e-7 * context))
    return steps


def test_a_fit_finds_the_constants() -> None:
    constants, quality = fit_steps(measured_steps())
    assert constants == pytest.approx((0.004, 3e-4, 6e-5, 5e-7), rel=1e-6)
    assert quality.num_disturbed == 0 and quality.r_squared == 1.0


def test_disturbed_steps_do_not_count() -> None:
    steps = measured_steps()
    disturbed = [msgspec.structs.replace(step, seconds=4 * step.seconds) for step in steps[::10]]
    constants, quality = fit_steps(disturbed + steps)
    assert quality.num_disturbed == len(disturbed)
    assert constants == pytest.approx((0.004, 3e-4, 6e-5, 5e-7), rel=1e-6)


def test_constants_are_never_negative() -> None:
    rng = random.Random(2)
    steps = [MeasuredStep(n, n % 7, 5000 - n * n % 999, 0.01 + 1e-4 * n + rng.uniform(0, 1e-4)) for n in range(1, 100)]
    constants, _ = fit_steps(steps)
    assert min(constants) >= 0.0


def test_steps_that_are_all_alike_are_refused() -> None:
    with pytest.raises(ConfigError, match="different batch sizes"):
        fit_steps([MeasuredStep(4, 0, 100, 0.01)] * 50)


def test_contents_of_a_plan() -> None:
    plan = StepPlan(1, [], [], [ScheduledSequence(1, 99, 1, [], True), ScheduledSequence(2, 10, 30, [], False)])
    assert contents(plan) == (1, 30, 140)
    assert COST.seconds(contents(plan)) == pytest.approx(0.013)


def test_shipped_models_can_be_read() -> None:
    assert shipped_names()
    for name in shipped_names():
        assert read_cost_model(name).name == name


def test_a_file_comes_back_as_written(tmp_path: Path) -> None:
    write_cost_model(tmp_path / "mine.json", COST)
    assert read_cost_model(str(tmp_path / "mine.json")) == COST


def test_what_is_no_cost_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give a file, or one of"):
        read_cost_model(str(tmp_path / "nothing.json"))
    (tmp_path / "bad.json").write_text('{"name": "bad"}')
    with pytest.raises(ConfigError, match="missing required field"):
        read_cost_model(str(tmp_path / "bad.json"))
