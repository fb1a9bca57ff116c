"""ModelHealth: whether one model answers, as one gateway knows it, and whether its work moves.

A model is ready when some replica takes requests and the way to a token has been seen to work: a request of a client
has brought a token, or, where nobody asks, a probe of one token has. A proof holds until the last replica goes away or
a probe fails. Owns no clock: `now` is an argument.
"""

from enum import StrEnum
from typing import NamedTuple

PROVEN_S = 10.0  #: after so long without a token an idle model is tried again
RETRY_S = 1.0
STUCK_S = 10.0


class Probe(StrEnum):
    """What came of a probe."""

    PASSED = "passed"
    BUSY = "busy"  #: no token, but the engines compute, or so much waits that no more is let in: that is an answer
    FAILED = "failed"


class Sight(NamedTuple):
    """What is seen of a model at one look."""

    num_shards: int  #: that can be asked
    num_usable: int  #: replicas that take requests
    num_waiting: int  #: requests of clients that wait for a token
    num_tokens: int  #: that have come so far
    engine_progress: int  #: of its replicas' engines, in all; moves while they compute
    patience_s: float  #: an honest step may take so long


class ModelHealth:
    """Fed by `look` a few times a second; runs no probe itself."""

    def __init__(self) -> None:
        self.unready = "not tried yet"  #: what keeps it from being ready; empty: nothing
        self.stuck = ""  #: what does not move; empty: nothing waits, or something moves
        self._proven_at: float | None = None
        self._failure = ""
        self._probed_at: float | None = None
        self._is_probing = False
        self._moved_at: float | None = None
        self._last: Sight | None = None

    def look(self, sight: Sight, now: float) -> bool:
        """Returns whether to probe now; then `probed` is to be called at the end of it."""
        last, self._last = self._last, sight
        has_come = last is not None and sight.num_tokens > last.num_tokens
        if has_come:
            self._proven_at, self._failure = now, ""
        if not sight.num_usable or not sight.num_shards:
            self._proven_at = None
        self._judge_progress(sight, last, has_come, now)
        self.unready = self._find_unready(sight)
        if not self._is_to_be_tried(sight, now):
            return False
        self._is_probing, self._probed_at = True, now
        return True

    def probed(self, outcome: Probe, why: str, now: float) -> None:
        """The probe is over; `why` it failed."""
        self._is_probing = False
        if outcome is Probe.FAILED:
            self._proven_at, self._failure = None, why
        elif self._last is not None and self._last.num_usable:
            self._proven_at, self._failure = now, ""
        if self._last is not None:
            self.unready = self._find_unready(self._last)

    def _find_unready(self, sight: Sight) -> str:
        if not sight.num_shards:
            return "no router shard can be asked"
        if not sight.num_usable:
            return "no replica takes requests"
        if self._proven_at is None:
            return self._failure or "not tried yet"
        return ""

    def _is_to_be_tried(self, sight: Sight, now: float) -> bool:
        if self._is_probing or not sight.num_usable or not sight.num_shards:
            return False
        if self._proven_at is not None:
            return sight.num_waiting == 0 and now - self._proven_at >= PROVEN_S
        return not self._failure or self._probed_at is None or now - self._probed_at >= RETRY_S

    def _judge_progress(self, sight: Sight, last: Sight | None, has_come: bool, now: float) -> None:
        moved = last is None or has_come or sight.engine_progress != last.engine_progress
        if moved or not sight.num_waiting or self._moved_at is None:
            self._moved_at = now
        still_s = now - self._moved_at
        is_stuck = still_s > max(STUCK_S, sight.patience_s)
        self.stuck = f"{sight.num_waiting} requests wait, and nothing has moved for {still_s:.0f} s" if is_stuck else ""
