"""RetryBudget: bounds how much work failed requests may ask for again, so that retries make no outage worse."""

SHARE = 0.2  #: retries per request
PER_SECOND = 10.0  #: retries that are allowed whatever the load
_KEEPS_S = 10.0  #: unused allowance is worth nothing after this


class RetryBudget:
    """A purse: each request puts `SHARE` in, each second `PER_SECOND`; a retry takes 1."""

    def __init__(self, now: float) -> None:
        self._balance = PER_SECOND
        self._earned = 0.0  #: by requests, in the last `_KEEPS_S` or so
        self._counted_at = now

    def on_request(self) -> None:
        """A request came."""
        self._balance += SHARE
        self._earned += SHARE

    def spend(self, now: float) -> bool:
        """Whether one more retry is allowed; if so it is counted."""
        passed, self._counted_at = max(0.0, now - self._counted_at), now
        self._earned *= max(0.0, 1.0 - passed / _KEEPS_S)
        self._balance = min(self._balance + passed * PER_SECOND, _KEEPS_S * PER_SECOND + self._earned)
        if self._balance < 1.0:
            return False
        self._balance -= 1.0
        return True
