"""DrainRate: how much work per second the replicas take from a queue while it is never empty, and waits that follow.

Time without a backlog tells nothing about what the replicas could do, so it is left out.
"""

from zlib import crc32

HALF_LIFE_S = 10.0  #: of backlogged time
LEAST_SEEN_S = 1.5  #: backlogged time before the rate is known; longer than a frozen replica counts as live
UNKNOWN_WAIT_S = 5.0
SHORTEST_S, LONGEST_S = 1.0, 60.0  #: of what a client is told
JITTER = 0.2


class DrainRate:
    def __init__(self) -> None:
        self._cost = 0.0  # taken, old work counting less
        self._seconds = 0.0  # backlogged, the same
        self._passed_at: float | None = None
        self._is_backlogged = False

    def pass_time(self, is_backlogged: bool, now: float) -> None:
        """Call at each event, before what it changes, with what has been true since the last one."""
        if is_backlogged and self._passed_at is not None:
            gap = max(0.0, now - self._passed_at)
            keep = 0.5 ** (gap / HALF_LIFE_S)
            self._cost *= keep
            self._seconds = keep * self._seconds + gap
        self._passed_at, self._is_backlogged = now, is_backlogged

    def note(self, cost: int) -> None:
        """Work of this cost was taken from the queue."""
        if self._is_backlogged:
            self._cost += cost

    def forget(self) -> None:
        """What was measured says nothing about what comes."""
        self._cost = self._seconds = 0.0

    @property
    def per_s(self) -> float | None:
        """Cost per second; None: not known."""
        return self._cost / self._seconds if self._seconds >= LEAST_SEEN_S else None

    def wait_s(self, cost: float) -> float | None:
        """How long work of this cost takes to leave; None: not known."""
        rate = self.per_s
        if not cost:
            return 0.0
        if rate is None:
            return None
        return cost / rate if rate > 0 else LONGEST_S


def retry_after_s(wait_s: float | None, request_id: str) -> float:
    """When to come back: the wait, up to a fifth more or less, so that who was refused together comes apart."""
    wait = UNKNOWN_WAIT_S if wait_s is None else wait_s
    jitter = 1 - JITTER + 2 * JITTER * crc32(request_id.encode()) / 2**32
    return min(LONGEST_S, max(SHORTEST_S, wait)) * jitter
