"""The watchdog of a gateway: which replica is frozen or stuck, and which shard is silent.

Time is what the gateway has itself lived: ticks that came late count as one, so a gateway that was starved of the
processor, and has not read its sockets, accuses nobody.
"""

from cluster.frames import Beat

TICK_S = 0.1
SILENCE_S = 1.2  #: no frame of any kind for so long, from one that owes them
HOPELESS_S = 10.0  #: after so long the connection itself is doubted, and dialled anew
_MOST_S = 1.5 * TICK_S


class LivedTime:
    """The gateway's own time: `now` moves with its ticks."""

    def __init__(self) -> None:
        self.now = 0.0
        self._ticked_at: float | None = None

    def tick(self, at: float) -> None:
        """Call every `TICK_S`, with any steady clock."""
        if self._ticked_at is not None:
            self.now += min(at - self._ticked_at, _MOST_S)
        self._ticked_at = at


class ReplicaWatch:
    """What one replica owes while requests of this gateway run there: frames, and progress of a busy engine."""

    __slots__ = ("_heard_at", "_is_busy", "_moved_at", "_time", "patience_s", "progress", "takes_requests")

    def __init__(self, time: LivedTime) -> None:
        self._time = time
        self.progress = -1  #: moves while its engine computes
        self.takes_requests = True
        self.begin()

    def begin(self) -> None:
        """A first request was submitted: from now on it owes."""
        self._heard_at = self._moved_at = self._time.now
        self._is_busy, self.patience_s = False, 0.0

    def heard(self) -> None:
        """A frame has come."""
        self._heard_at = self._time.now

    def on_beat(self, beat: Beat) -> bool:
        """Returns whether the engine has moved or rests."""
        moved = beat.progress != self.progress or not beat.is_busy
        self.progress, self._is_busy, self.patience_s = beat.progress, beat.is_busy, beat.patience_s
        self.takes_requests = beat.takes_requests
        if moved:
            self._moved_at = self._time.now
        return moved

    def accusation(self) -> str:
        """What is wrong with it; empty: nothing."""
        if self.is_silent:
            return f"said nothing for {self.silent_s:.1f} s"
        still_s = self._time.now - self._moved_at
        if self._is_busy and still_s > max(SILENCE_S, self.patience_s):
            return f"its engine has not moved for {still_s:.1f} s"
        return ""

    @property
    def is_silent(self) -> bool:
        """Not even its event loop turns, or nothing comes through."""
        return self.silent_s > SILENCE_S

    @property
    def silent_s(self) -> float:
        return self._time.now - self._heard_at
