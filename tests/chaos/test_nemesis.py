"""The nemesis's decisions, and who is answerable for a gap."""

from array import array

import pytest

from scripts.chaos_run.gaps import Gap, Sort, broken_bounds, figures, find_gaps
from scripts.chaos_run.journal import ChoiceJournal, Journal
from scripts.chaos_run.lag import Lateness
from scripts.chaos_run.nemesis import WEIGHTS, ClusterView, Fault, Kind, Nemesis, Process, Whole
from scripts.chaos_run.workload import Ask

REPLICAS = [Process("a", 1), Process("b", 2)]
VIEW = ClusterView(
    REPLICAS, [Process("g", 3)], [Process("manta-router-0", 4)], [Process("c", 5)], (), [Process("a.1", 6)]
)


def test_a_seed_gives_the_same_faults() -> None:
    def draw(seed: int) -> list[object]:
        nemesis = Nemesis(seed, WEIGHTS)
        return [(kind := nemesis.next_kind(), nemesis.pause_s(), nemesis.aim(kind, VIEW)) for _ in range(50)]

    assert draw(1) == draw(1) != draw(2)


def test_every_kind_comes_and_aims_at_its_own() -> None:
    nemesis = Nemesis(1, WEIGHTS)
    assert {nemesis.next_kind() for _ in range(500)} == set(WEIGHTS)
    at_replica = nemesis.aim(Kind.KILL_REPLICA, VIEW)
    assert at_replica is not None and at_replica.target in REPLICAS and at_replica.hold_s == 0
    frozen = nemesis.aim(Kind.FREEZE_REPLICA, VIEW)
    assert frozen is not None and frozen.hold_s >= 2
    assert nemesis.aim(Kind.KILL_SHARD, VIEW) == Fault(Kind.KILL_SHARD, VIEW.shards[0])
    assert nemesis.aim(Kind.KILL_RANK, VIEW) == Fault(Kind.KILL_RANK, VIEW.ranks[0])
    at_rank = nemesis.aim(Kind.FREEZE_RANK, VIEW)
    assert at_rank is not None and at_rank.target == VIEW.ranks[0] and at_rank.hold_s >= 2
    assert nemesis.aim(Kind.KILL_PROXY, VIEW) is None


@pytest.mark.parametrize(
    ("kind", "whole"),
    [(Kind.KILL_REPLICA, True), (Kind.KILL_GATEWAY, False), (Kind.KILL_SHARD, False), (Kind.KILL_CONTROLLER, True)],
)
def test_somebody_must_be_left_to_take_over(kind: Kind, whole: bool) -> None:
    assert Whole().is_met(VIEW, kind) is whole
    assert not Whole().is_met(ClusterView(REPLICAS[:1], VIEW.gateways * 2, VIEW.shards * 2), kind)


def journal(*times: float) -> Journal:
    return Journal(Ask("r", [1], 9), times[0], [ChoiceJournal(array("d", times))], ended_at=times[-1])


def test_a_fault_is_answerable_for_the_longest_gap_in_its_time() -> None:
    fault = Fault(Kind.KILL_REPLICA, REPLICAS[0], at=10.0)
    before, around, later = journal(1, 5, 9), journal(9.5, 9.9, 10.4, 10.6), journal(12.5, 20)
    [gap] = find_gaps([before, around, later], [fault], Lateness())
    assert (gap.start, round(gap.seconds, 3)) == (9.9, 0.5)


def test_a_gap_has_one_cause() -> None:
    killed, frozen = Fault(Kind.KILL_REPLICA, None, at=10.0), Fault(Kind.FREEZE_REPLICA, None, at=11.0, hold_s=3.0)
    [during, after] = find_gaps([journal(9.5, 10.99, 12.5), journal(13.5, 15.0)], [killed, frozen], Lateness())
    assert during.fault is frozen and after.fault is frozen


def test_the_clients_own_lateness_is_taken_off() -> None:
    own = Lateness()
    own.note(10.1, 10.3)
    [gap] = find_gaps([journal(9.9, 10.4)], [Fault(Kind.KILL_REPLICA, None, at=10.0)], own)
    assert round(gap.own_s, 3) == 0.2 and round(gap.served_s, 3) == 0.3
    assert own.within(10.2, 10.25) == pytest.approx(0.05)


def test_a_short_gap_makes_no_figure_better() -> None:
    streams = [journal(9.99, 10.01, 10.03), journal(9.9, 10.4)]
    of = figures(find_gaps(streams, [Fault(Kind.KILL_REPLICA, None, at=10.0)], Lateness()))
    assert (of[Sort.DEAD].count, round(of[Sort.DEAD].p50, 3), of[Sort.FROZEN].count) == (1, 0.5, 0)


@pytest.mark.parametrize(
    ("kind", "seconds", "broken"),
    [
        (Kind.KILL_GATEWAY, 0.49, False),
        (Kind.KILL_GATEWAY, 0.6, True),
        (Kind.FREEZE_REPLICA, 1.9, False),
        (Kind.FREEZE_REPLICA, 2.1, True),
        (Kind.REDEPLOY, 3.0, False),
    ],
)
def test_bounds(kind: Kind, seconds: float, broken: bool) -> None:
    gap = Gap(Fault(kind, None, at=10.0), "r", 10.0, seconds, 0.0)
    assert bool(broken_bounds([gap])) is broken
