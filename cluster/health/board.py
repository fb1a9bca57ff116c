"""HealthBoard: what can be said of a gateway's health at any moment, by any thread, at once.

    live       the process and the thread that answers live, and the event loop has turned within a minute
    ready      every model answers (or the one asked for), the event loop turns now, and the gateway does not leave
    progress   where work waits, something moves

Being busy is none of them: a blocked event loop makes a gateway unready at once, and dead only after a minute of it.
The event loop writes; a thread of its own watches whether it still does, and counts the time that it has itself lived,
so a process that was stopped, or starved of the processor, is not called dead when it wakes.
"""

from collections.abc import Mapping, Sequence

import msgspec

from cluster.streams.watchdog import LivedTime

LATE_S = 0.8  #: the event loop turns ten times a second
DEAD_S = 60.0
PATHS = ("/health/live", "/health/ready", "/health/progress")


class HealthAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One of the three. `why`: what speaks against it; nothing where it is so."""

    status: str  #: `ok`, or `unhealthy`
    why: list[str] = []

    @property
    def http_status(self) -> int:
        return 200 if self.status == "ok" else 503


class HealthBoard:
    """`models`: served names. Attributes are replaced, never changed, so no thread needs a lock."""

    def __init__(self, models: Sequence[str]) -> None:
        self._unready: Mapping[str, str] = dict.fromkeys(models, "the gateway has only just started")
        self._stuck: list[str] = []
        self._is_leaving = False
        self._num_turns = self._num_seen = 0
        self._time = LivedTime()
        self._turned_at = 0.0

    # The event loop

    def turned(self, unready: Mapping[str, str], stuck: list[str]) -> None:
        """The event loop has turned. By model what keeps it from being ready (empty: nothing); what does not move."""
        self._unready, self._stuck = unready, stuck
        self._num_turns += 1

    # Any thread

    @property
    def is_leaving(self) -> bool:
        return self._is_leaving

    def leave(self) -> None:
        """The gateway is about to end: never ready again."""
        self._is_leaving = True

    def watch(self, now: float) -> None:
        """Call about ten times a second from a thread that nothing else can hold up."""
        self._time.tick(now)
        if self._num_seen != self._num_turns:
            self._num_seen, self._turned_at = self._num_turns, self._time.now

    @property
    def _still_s(self) -> float:
        return self._time.now - self._turned_at

    def live(self) -> HealthAnswer:
        return _answer([f"the event loop has not turned for {self._still_s:.0f} s"] if self._still_s > DEAD_S else [])

    def ready(self, model: str = "") -> HealthAnswer:
        """Of one model, if it is named."""
        why = ["the gateway is about to end"] if self._is_leaving else []
        if self._still_s > LATE_S:
            why.append(f"the event loop has not turned for {self._still_s:.1f} s")
        unready = self._unready
        if model and model not in unready:
            why.append(f"no model of the name {model[:64]!r} is served here")
        asked = [model] if model else list(unready)
        why += [f"{name}: {unready[name]}" for name in asked if unready.get(name)]
        return _answer(why)

    def progress(self) -> HealthAnswer:
        return _answer(self._stuck)

    def answer(self, path: str, model: str = "") -> HealthAnswer:
        """To one of `PATHS`."""
        if path == "/health/live":
            return self.live()
        return self.ready(model) if path == "/health/ready" else self.progress()


def _answer(why: list[str]) -> HealthAnswer:
    return HealthAnswer(status="unhealthy" if why else "ok", why=why)
