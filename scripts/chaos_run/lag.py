"""How late this machine itself is: the client's event loop, and a process that does nothing but sleep.

A gap that a client sees has three possible causes: the server, the client's own event loop, and a machine on which
nobody gets a core. The first is what is judged, so the second is taken off a gap. The third cannot be told from a slow
server by its effect; the sleeper only shows how much of it there was.
"""

import asyncio
import bisect
import multiprocessing
import os
import time
from multiprocessing.connection import Connection

TICK_S = 0.01
NOTABLE_S = 0.01  #: less lateness than this is not kept


class Lateness:
    """Moments at which something was late: (when it should have run, by how much), in the order of time."""

    def __init__(self) -> None:
        self._at: list[float] = []
        self._late_s: list[float] = []

    def note(self, due: float, now: float) -> None:
        if now - due > NOTABLE_S:
            self._at.append(due)
            self._late_s.append(now - due)

    def within(self, start: float, end: float) -> float:
        """The longest lateness that lies in the interval, cut to it; seconds."""
        first = max(0, bisect.bisect_left(self._at, start) - 1)
        longest = 0.0
        for at, late_s in zip(self._at[first:], self._late_s[first:], strict=True):
            if at >= end:
                break
            longest = max(longest, min(end, at + late_s) - max(start, at))
        return longest

    @property
    def longest_s(self) -> float:
        return max(self._late_s, default=0.0)

    @property
    def total_s(self) -> float:
        return sum(self._late_s)


async def watch_own_loop(lateness: Lateness) -> None:
    """Runs until cancelled."""
    while True:
        due = time.monotonic() + TICK_S
        await asyncio.sleep(TICK_S)
        lateness.note(due, time.monotonic())


class Sleeper:
    """A process that sleeps and notes when it woke too late, with the same clock, and as low a priority as the servers:
    Ray starts its workers with niceness 15, so whatever else runs on the machine goes before them."""

    def __init__(self, niceness: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_sleep_until_told, args=(theirs, niceness), daemon=True)
        self._process.start()
        theirs.close()

    def stop(self) -> Lateness:
        """Ends the process; what it noted."""
        self._ours.send(None)
        lateness: Lateness = self._ours.recv() if self._ours.poll(5) else Lateness()
        self._process.join(5)
        return lateness


def _sleep_until_told(connection: Connection, niceness: int) -> None:
    os.nice(max(0, niceness - os.nice(0)))
    lateness = Lateness()
    while True:
        due = time.monotonic() + TICK_S
        try:
            if connection.poll(TICK_S):
                connection.send(lateness)
                return
        except (EOFError, KeyboardInterrupt):
            return
        lateness.note(due, time.monotonic())
