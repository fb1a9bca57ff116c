"""RebuildRule: whether the ranks of a replica that has lost some are made whole again, and for how long that is tried.

Whoever loses ranks again and again, or takes longer than a start, is better replaced as a whole.
"""

from collections import deque
from collections.abc import Iterable

MOST, WITHIN_S = 3, 600.0  #: rebuilds
LEAST_BOUND_S = 30.0


class RebuildRule:
    """Of one replica, whose start took `start_s`. Time is any steady clock."""

    def __init__(self, start_s: float) -> None:
        self.bound_s = max(LEAST_BOUND_S, start_s)  #: a rebuild that is not done by then has failed
        self._begun: deque[float] = deque()

    def may_begin(self, now: float) -> bool:
        """Whether one more rebuild is worth it; if so, it is counted."""
        while self._begun and self._begun[0] <= now - WITHIN_S:
            self._begun.popleft()
        if len(self._begun) == MOST:
            return False
        self._begun.append(now)
        return True


def ranks_to_replace(accused: int, ended: Iterable[int]) -> list[int]:
    """The rank that was found lost, running as it may be, and those whose processes have ended; in order."""
    return sorted({accused, *ended})
