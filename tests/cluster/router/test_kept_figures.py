"""What a shard remembers of others' numbers: the newest of the living, for a while what the dead had counted."""

from cluster.metrics.declared import CALLS, CALLS_RUNNING, Source
from cluster.metrics.snapshot import Families, Snapshot
from cluster.router.kept_figures import MOST_DEAD, REMEMBERED_S, KeptFigures


def figures(process: str, calls: float, age_s: float = 0.0) -> Snapshot:
    families = Families()
    families.add(CALLS, calls, "m", "default", "ok")
    families.add(CALLS_RUNNING, 7, "m")
    return Snapshot(Source.GATEWAY, process, families.samples, age_s)


def calls(kept: KeptFigures, now: float) -> dict[str, float]:
    return {found.process: found.families[CALLS.name][0].values[0] for found in kept.all(now)}


def test_the_newest_word_counts_and_grows_old() -> None:
    kept = KeptFigures()
    kept.said(figures("g", 1), 10.0)
    kept.said(figures("g", 2), 12.0)
    [found] = kept.all(13.5)
    assert calls(kept, 13.5) == {"g": 2} and found.age_s == 1.5 and CALLS_RUNNING.name in found.families


def test_the_dead_keep_what_they_have_counted_for_a_while() -> None:
    kept = KeptFigures()
    kept.said(figures("g", 2), 10.0)
    kept.gone("g", 11.0)
    kept.gone("r", 11.0, figures("r", 5, age_s=0.5))
    kept.gone("never heard of", 11.0)
    found = {snapshot.process: snapshot for snapshot in kept.all(12.0)}
    assert calls(kept, 12.0) == {"g": 2, "r": 5} and found["r"].age_s == 1.5
    assert all(CALLS_RUNNING.name not in snapshot.families for snapshot in found.values())
    kept.expire(10.0 + REMEMBERED_S)
    assert set(calls(kept, 0.0)) == {"g", "r"}
    kept.expire(12.0 + REMEMBERED_S)
    assert kept.all(0.0) == []


def test_who_comes_back_is_told_of_as_living() -> None:
    kept = KeptFigures()
    kept.said(figures("g", 2), 10.0)
    kept.gone("g", 11.0)
    kept.said(figures("g", 3), 12.0)
    [found] = kept.all(12.0)
    assert calls(kept, 12.0) == {"g": 3} and CALLS_RUNNING.name in found.families


def test_a_crash_loop_fills_no_memory() -> None:
    kept = KeptFigures()
    for number in range(3 * MOST_DEAD):
        kept.gone(f"r{number}", 1.0, figures(f"r{number}", 1))
    assert len(kept.all(1.0)) == MOST_DEAD and f"r{3 * MOST_DEAD - 1}" in calls(kept, 1.0)
