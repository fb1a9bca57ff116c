"""What a watchdog sees of a step."""

import time

import pytest

from engine.step_progress import StepProgress


def test_the_patience_follows_the_longest_gap_within_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    progress = StepProgress()
    progress.begin_step()
    now += 0.5
    progress.tick()
    now += 60.0  # between two steps
    progress.begin_step()
    now += 0.2
    progress.tick()
    assert (progress.count, progress.patience_s) == (4, pytest.approx(1.5))
    progress.expect(4.0)
    assert progress.patience_s == pytest.approx(6.0)


def test_a_process_that_was_stopped_does_not_teach_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    progress = StepProgress()
    progress.begin_step()
    now += 3600.0
    progress.tick()
    assert progress.patience_s <= 30.0
