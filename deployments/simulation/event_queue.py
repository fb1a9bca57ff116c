"""EventQueue: what happens when, in simulated seconds; events of one time in the order in which they were planned."""

import heapq
from collections.abc import Callable
from typing import Any

Action = Callable[[Any], None]


class EventQueue:
    """The clock of a simulation and all that is still to come."""

    def __init__(self) -> None:
        self.now = 0.0  #: seconds since the simulation began
        self.num_done = 0
        self._heap: list[tuple[float, int, Action, Any]] = []
        self._num_planned = 0

    def __len__(self) -> int:
        return len(self._heap)

    def after(self, delay_s: float, action: Action, argument: Any) -> None:
        """Call `action(argument)` so many seconds from now."""
        self._num_planned += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._num_planned, action, argument))

    def at(self, time: float, action: Action, argument: Any) -> None:
        """Call `action(argument)` at `time`, or now where that has passed."""
        self._num_planned += 1
        heapq.heappush(self._heap, (max(self.now, time), self._num_planned, action, argument))

    def step(self) -> None:
        """Let the next event happen."""
        self.now, _, action, argument = heapq.heappop(self._heap)
        self.num_done += 1
        action(argument)
