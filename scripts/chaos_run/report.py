"""The one line that a run comes to, and what is to be read when it is not a good one."""

from collections import Counter

from scripts.chaos_run.campaign import Outcome
from scripts.chaos_run.gaps import GapFigures, Sort, broken_bounds, figures
from scripts.chaos_run.oracle import Wrong

MAX_SHOWN = 20
NEAR_TIE_SHARE = 0.001


def failures(outcome: Outcome, with_gaps: bool) -> list[str]:
    """Everything for which the run fails."""
    found = [str(violation) for violation in outcome.violations] + outcome.troubles
    if outcome.num_near_ties > NEAR_TIE_SHARE * max(1, outcome.num_positions):
        found.append(f"{outcome.num_near_ties} near-ties in {outcome.num_positions} positions are too many")
    return found + (broken_bounds(outcome.gaps) if with_gaps else [])


def summary(outcome: Outcome, seed: int, failed: bool) -> str:
    """Streams, faults by kind, what was lost, duplicated, changed, refused, resumed, migrated, and the gaps."""
    wrong = Counter(violation.kind for violation in outcome.violations)
    by_kind = Counter(str(fault.kind) for fault in outcome.faults)
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(by_kind.items()))
    told = {sort: found for sort, found in figures(outcome.gaps).items() if found.count or sort in _ALWAYS_TOLD}
    gaps = ", ".join(f"{sort} {_figures(found)}" for sort, found in told.items())
    counts = ", ".join(f"{wrong[kind]} {name}" for kind, name in _NAMES.items())
    moved = "?" if outcome.migrations is None else str(outcome.migrations)
    ties = f", {outcome.num_near_ties} near-ties" if outcome.num_near_ties else ""
    return (
        f"seed {seed}: {len(outcome.journals)} streams, {len(outcome.faults)} faults{f' ({kinds})' if kinds else ''} "
        f"in {outcome.seconds:.0f} s: {counts}{ties}; "
        f"{sum(journal.num_resumed > 0 for journal in outcome.journals)} resumed, "
        f"{sum(journal.num_sent > 1 for journal in outcome.journals)} sent again, {moved} migrations; "
        f"gaps after processes {gaps}; "
        f"client late by at most {outcome.own.longest_s:.2f} s, machine by {outcome.machine.longest_s:.2f} s: "
        f"{'FAILED' if failed else 'passed'}"
    )


_ALWAYS_TOLD = (Sort.DEAD, Sort.FROZEN)
_NAMES = {
    Wrong.LOST: "lost",
    Wrong.DUPLICATED: "duplicated",
    Wrong.CHANGED: "changed",
    Wrong.CLIENT_ERROR: "client errors",
    Wrong.USAGE: "wrong usages",
}


def _figures(found: GapFigures) -> str:
    if not found.count:
        return "none noticed"
    return f"p50 {found.p50:.2f} p99 {found.p99:.2f} max {found.longest:.2f} s ({found.count})"


def details(outcome: Outcome, found: list[str]) -> list[str]:
    """The failures, the first ones of many, and the longest gaps with what lay in them."""
    lines = found[:MAX_SHOWN]
    if len(found) > MAX_SHOWN:
        lines.append(f"... and {len(found) - MAX_SHOWN} more")
    for gap in sorted(outcome.gaps, key=lambda gap: -gap.served_s)[:5]:
        late = outcome.machine.within(gap.start, gap.start + gap.seconds)
        after = gap.fault.at - gap.start
        lines.append(
            f"gap of {gap.served_s:.2f} s in request {gap.request}: {gap.fault} came {after:.2f} s after its start; "
            f"lateness in it: client {gap.own_s:.2f} s (taken off), machine {late:.2f} s"
        )
    return lines
