"""StepProgress: shows from outside whether a step moves, also a long one, and how long it may honestly stand still.

The executor ticks it at least twice a layer; a watchdog in another thread reads it. Reading and writing need no lock:
a reader that sees an old value sees the new one next time.
"""

import ctypes
import time
from typing import NamedTuple

_MARGIN = 3.0  #: a step may stand still for so many times the longest gap between ticks seen
_MAX_GAP_S = 10.0  #: a longer gap is a process that was stopped, not a computation


class EngineProgress(NamedTuple):
    """What a watchdog wants to know."""

    progress: int  #: moves while the engine computes
    is_busy: bool  #: a step is being computed
    patience_s: float  #: `count` may stand still so long in an honest step


class StepProgress:
    """Counts ticks, and keeps the longest time between two of one step."""

    __slots__ = ("_last", "_ticks", "kernel_ticks", "longest_gap_s")

    def __init__(self) -> None:
        self.kernel_ticks = ctypes.c_int64()  #: where a kernel that computes many layers at once counts them itself
        self.longest_gap_s = 0.0
        self._ticks = 0
        self._last = 0.0

    def begin_step(self) -> None:
        """What has passed since the last tick was no computation."""
        self._last = time.perf_counter()
        self._ticks += 1

    def tick(self) -> None:
        """A part of the step is done."""
        now = time.perf_counter()
        gap, self._last = now - self._last, now
        self._ticks += 1
        if gap > self.longest_gap_s:
            self.longest_gap_s = min(gap, _MAX_GAP_S)

    @property
    def count(self) -> int:
        """All ticks so far."""
        return self._ticks + self.kernel_ticks.value

    @property
    def patience_s(self) -> float:
        """How long a step may stand still before something is wrong."""
        return _MARGIN * self.longest_gap_s

    def expect(self, scale: float) -> None:
        """Steps will come that are so many times longer than the longest so far."""
        self.longest_gap_s = min(self.longest_gap_s * scale, _MAX_GAP_S)
