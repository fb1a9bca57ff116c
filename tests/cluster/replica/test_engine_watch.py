"""A stuck engine is told from a busy one, and from a process that was stopped."""

from cluster.replica.engine_watch import EXTRA_S, EngineWatch

PATIENCE_S = 4.0


def looks(watch: EngineWatch, count: int, start: float, *, moving: bool, is_busy: bool) -> list[bool]:
    """One look a second."""
    return [watch.is_stuck(i if moving else 7, is_busy, PATIENCE_S, start + i) for i in range(count)]


def test_busy_is_not_stuck() -> None:
    assert not any(looks(EngineWatch(), 100, 0.0, moving=True, is_busy=True))


def test_resting_is_not_stuck() -> None:
    assert not any(looks(EngineWatch(), 100, 0.0, moving=False, is_busy=False))


def test_busy_and_still_for_longer_than_its_patience_is() -> None:
    seen = looks(EngineWatch(), 10, 0.0, moving=False, is_busy=True)
    assert seen.index(True) == PATIENCE_S + EXTRA_S + 1


def test_a_stopped_process_accuses_nobody() -> None:
    watch = EngineWatch()
    looks(watch, 3, 0.0, moving=False, is_busy=True)
    assert not watch.is_stuck(7, True, PATIENCE_S, 1000.0)
    assert not watch.is_stuck(8, True, PATIENCE_S, 1001.0)
