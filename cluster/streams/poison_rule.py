"""PoisonRule: which of the requests that were in flight when a replica died has killed it.

A death weighs against each request that ran there. A request that dies twice without a token in between is suspect. A
single suspect is condemned; of several that died together only one can be the killer, so they wait in a quarantine lane
and are tried one at a time: who gives a token is cleared, who dies as the only suspect is condemned.

A process that merely fell silent weighs half: requests are not known to do that, stopped processes and lost networks
are, and what is sent there before it is noticed looks as if it had ended two replicas in a row.
"""

from collections import deque
from collections.abc import Iterable

DEATH, SILENCE = 2, 1  #: how much it weighs
_SUSPECT_AT = 2 * DEATH


class PoisonRule:
    """Knows requests by id only. Of a request that ends, `forget` must be called."""

    def __init__(self) -> None:
        self._strikes: dict[str, int] = {}
        self._lane: deque[str] = deque()
        self._tried: str | None = None

    def on_death(self, victims: Iterable[tuple[str, bool]], weight: int = DEATH) -> str | None:
        """One death, and who ran there: (id, whether its attempt gave a token). Returns the condemned."""
        suspects = []
        for request_id, gave_token in victims:
            strikes = weight if gave_token else self._strikes.get(request_id, 0) + weight
            self._strikes[request_id] = strikes
            if strikes >= _SUSPECT_AT:
                suspects.append(request_id)
            self._leave_lane(request_id)
        if len(suspects) == 1:
            return suspects[0]
        self._lane += suspects
        return None

    def may_run(self, request_id: str) -> bool:
        """False while it has to wait in the lane."""
        return request_id not in self._lane

    def is_tried(self, request_id: str) -> bool:
        """Whether it is the one suspect that runs."""
        return self._tried == request_id

    def next_trial(self) -> str | None:
        """The suspect that may run now; None while another one does, or if there is none."""
        if self._tried is not None or not self._lane:
            return None
        self._tried = self._lane.popleft()
        return self._tried

    def forget(self, request_id: str) -> None:
        """It has ended, or is cleared: its last attempt gave a token."""
        self._strikes.pop(request_id, None)
        self._leave_lane(request_id)

    def _leave_lane(self, request_id: str) -> None:
        if self._tried == request_id:
            self._tried = None
        elif request_id in self._lane:
            self._lane.remove(request_id)
