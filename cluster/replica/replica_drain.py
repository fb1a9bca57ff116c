"""ReplicaDrain: how a replica that is to end takes its leave. Time and what is left come in, what to do now goes out.

It admits nothing more. Short streams end by themselves; when `drain_s` has passed the others are handed back, so that
another replica with the same weights goes on with them. While there is none they run on here, for `grace_s` at most.
"""

from enum import StrEnum, auto

LINGER_S = 0.5  #: requests that were granted before the leave was heard are refused here, not lost with the process
FLUSH_S = 2.0  #: what was handed back has reached its gateways after so long, or never will


class DrainStep(StrEnum):
    WAIT = auto()  #: let run what runs
    HAND_BACK = auto()  #: said once: end everything with MIGRATE
    END = auto()  #: nothing is left to wait for


class ReplicaDrain:
    """One leave, from `began_at` on."""

    def __init__(self, began_at: float, drain_s: float, grace_s: float) -> None:
        self._began_at = began_at
        self._hand_back_at = began_at + drain_s
        self._grace_ends_at = began_at + max(drain_s, grace_s)
        self._handed_back_at: float | None = None

    def asks_for_others(self, now: float) -> bool:
        """Whether `next` depends on other replicas by now."""
        return self._handed_back_at is None and now >= self._hand_back_at

    def next(self, now: float, num_left: int, has_others: bool) -> DrainStep:
        """`num_left`: requests here; `has_others`: some other replica has the same weights and does not drain."""
        if num_left == 0:
            return DrainStep.END if now >= self._began_at + LINGER_S else DrainStep.WAIT
        if self._handed_back_at is not None:
            return DrainStep.END if now >= self._handed_back_at + FLUSH_S else DrainStep.WAIT
        if now >= self._grace_ends_at or (now >= self._hand_back_at and has_others):
            self._handed_back_at = now
            return DrainStep.HAND_BACK
        return DrainStep.WAIT
