"""EngineWatch: whether a replica's own engine is stuck: busy, and not moving for longer than an honest step takes.

Gateways leave a stuck engine as soon as its patience is over; the replica gives up `EXTRA_S` later, to be replaced.
A busy engine that moves is never stuck.
"""

EXTRA_S = 3.0
_MOST_S = 2.0  #: a longer time between two looks is one in which this process was stopped itself


class EngineWatch:
    """Looks in turn; time is any steady clock."""

    def __init__(self) -> None:
        self._progress = -1
        self._looked_at: float | None = None
        self._still_s = 0.0

    def is_stuck(self, progress: int, is_busy: bool, patience_s: float, now: float) -> bool:
        """What the engine says of itself now. Call every second or so."""
        passed_s = 0.0 if self._looked_at is None else min(now - self._looked_at, _MOST_S)
        self._looked_at = now
        moved, self._progress = progress != self._progress, progress
        self._still_s = 0.0 if moved or not is_busy else self._still_s + passed_s
        return self._still_s > patience_s + EXTRA_S
