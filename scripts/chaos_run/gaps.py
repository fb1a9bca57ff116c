"""Rule (g): how long clients wait for the next token around a fault.

A gap is the time between two events with tokens of one choice, or from the request to its first. Taken is, for each
choice and fault, the longest gap that overlaps the fault's time: from the fault (a freeze: to its end) to `SETTLED_S`
later. Its cause is the first fault that came while it lasted, else the last one before it. Of a gap the longest stall
of the client's own event loop in it is taken off. The percentiles are over the streams that were really interrupted,
gaps of `NOTICED_S` or more: a stream on another replica, which noticed nothing, does not make the figure look better.
"""

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from scripts.chaos_run.journal import Journal
from scripts.chaos_run.lag import Lateness
from scripts.chaos_run.nemesis import Fault, Kind

SETTLED_S = 2.0
NOTICED_S = 0.1
DEAD_P99_S, FROZEN_MAX_S = 0.5, 2.0


@dataclass(frozen=True, slots=True)
class Gap:
    """A gap of one choice and the fault that caused it. `own_s` of `seconds` were the client's own lateness."""

    fault: Fault
    request: str
    start: float
    seconds: float
    own_s: float

    @property
    def served_s(self) -> float:
        return self.seconds - self.own_s


def find_gaps(journals: Iterable[Journal], faults: Sequence[Fault], own: Lateness) -> list[Gap]:
    """Those that were noticed. `faults` are in the order of time."""
    found = []
    for journal in journals:
        if not journal.ask.stream:
            continue
        for choice in journal.choices:
            longest = {_longest(choice.tokens_at, fault.at, fault.over_at + SETTLED_S) for fault in faults}
            for start, seconds in filter(None, longest):
                cause = _cause(faults, start, start + seconds)
                gap = Gap(cause, journal.ask.name, start, seconds, own.within(start, start + seconds))
                if gap.served_s >= NOTICED_S:
                    found.append(gap)
    return found


def _cause(faults: Sequence[Fault], start: float, end: float) -> Fault:
    inside = (fault for fault in faults if start <= fault.at < end)
    return next(inside, None) or max((fault for fault in faults if fault.at < start), key=lambda fault: fault.at)


def _longest(times: Sequence[float], start: float, end: float) -> tuple[float, float] | None:
    """The longest interval between neighbours that overlaps [start, end]: when it begins, and how long it is."""
    first = max(0, bisect.bisect_right(times, start) - 1)
    best: tuple[float, float] | None = None
    for at in range(first, len(times) - 1):
        if times[at] >= end:
            break
        seconds = times[at + 1] - times[at]
        if best is None or seconds > best[1]:
            best = (times[at], seconds)
    return best


@dataclass(frozen=True, slots=True)
class GapFigures:
    """Seconds, over the interrupted streams."""

    count: int
    p50: float
    p99: float
    longest: float

    @classmethod
    def of(cls, gaps: Iterable[Gap]) -> "GapFigures":
        ordered = sorted(gap.served_s for gap in gaps)
        if not ordered:
            return cls(0, 0.0, 0.0, 0.0)
        return cls(len(ordered), _rank(ordered, 0.5), _rank(ordered, 0.99), ordered[-1])


def _rank(ordered: Sequence[float], share: float) -> float:
    """Nearest rank."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Sort(StrEnum):
    """Kinds of faults by what a client may feel of them."""

    DEAD = "dead"
    FROZEN = "frozen"
    LEAVING = "leaving"  #: drained or replaced
    PROXY = "proxy"  #: the only one of its host: nobody can connect until Ray Serve has started another

    @classmethod
    def of(cls, kind: Kind) -> "Sort":
        special = {
            Kind.FREEZE_REPLICA: cls.FROZEN,
            Kind.FREEZE_RANK: cls.FROZEN,
            Kind.DRAIN_REPLICA: cls.LEAVING,
            Kind.REDEPLOY: cls.LEAVING,
            Kind.KILL_PROXY: cls.PROXY,
        }
        return special.get(kind, cls.DEAD)


def figures(gaps: Sequence[Gap]) -> dict[Sort, GapFigures]:
    """Of each sort of fault."""
    return {sort: GapFigures.of(gap for gap in gaps if Sort.of(gap.fault.kind) is sort) for sort in Sort}


def broken_bounds(found_gaps: Sequence[Gap]) -> list[str]:
    """What is over its bound."""
    found, of = [], figures(found_gaps)
    dead, frozen = of[Sort.DEAD], of[Sort.FROZEN]
    if dead.p99 > DEAD_P99_S:
        found.append(f"gaps after dead processes: p99 {dead.p99:.2f} s is over {DEAD_P99_S} s")
    if frozen.longest > FROZEN_MAX_S:
        found.append(f"gaps after frozen processes: {frozen.longest:.2f} s is over {FROZEN_MAX_S} s")
    return found
