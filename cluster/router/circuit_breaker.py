"""Circuit breakers: a replica that fails requests gets none for a while, then one to try it with.

    closed --3 failures in a row--> open --backoff ends--> half-open --the probe gives tokens--> closed
                                     ^--------- the probe fails ---------'

Each time it opens again without a success, the backoff doubles. At most half of the fleet is out at once: what all
replicas fail is not the replicas' fault. Owns no clock: `now` is an argument.
"""

from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum

from cluster.frames import Outcome
from cluster.router.waiting import Key

FAILURES_TO_OPEN = 3
BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0
PROBE_S = 60.0  #: a probe of which nothing was heard for so long is given up (its gateway is gone)


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class CircuitBreaker:
    """One replica's breaker."""

    state: BreakerState = BreakerState.CLOSED
    num_failures: int = 0  #: in a row
    num_openings: int = 0  #: since the last success
    open_until: float = 0.0
    probe: Key | None = None  #: the one request that is let through when half-open
    probed_at: float = 0.0
    probe_tokens: int = 0  #: that the replica had given in all when the probe was sent

    @property
    def allows(self) -> bool:
        """Whether a request may go to the replica."""
        return self.state is BreakerState.CLOSED or (self.state is BreakerState.HALF_OPEN and self.probe is None)

    def dispatched(self, key: Key, now: float, num_output_tokens: int = 0) -> None:
        """A request goes to the replica; when half-open it is the probe."""
        assert self.allows, f"a request for a replica whose breaker is {self.state}"
        if self.state is BreakerState.HALF_OPEN:
            self.probe, self.probed_at, self.probe_tokens = key, now, num_output_tokens

    def returned(self, key: Key) -> None:
        """A request came back without having told anything: unused, withdrawn or neutral."""
        if self.probe == key:
            self.probe = None

    def pass_time(self, now: float) -> None:
        """From open to half-open; and a probe is given up of which nothing is heard."""
        if self.state is BreakerState.OPEN and now >= self.open_until:
            self.state = BreakerState.HALF_OPEN
        elif self.probe is not None and now >= self.probed_at + PROBE_S:
            self.probe = None

    def open(self, now: float) -> None:
        """For longer each time."""
        self.state = BreakerState.OPEN
        self.open_until = now + min(MAX_BACKOFF_S, BACKOFF_S * 2.0**self.num_openings)
        self.num_openings = min(self.num_openings + 1, 16)
        self.probe = None

    def close(self) -> None:
        self.let_in()
        self.num_openings = 0

    def let_in(self) -> None:
        """Closed, though nothing has ended well yet."""
        self.state = BreakerState.CLOSED
        self.num_failures, self.probe = 0, None


class CircuitBreakers:
    """The breakers of one fleet, and the bound on how many are not closed."""

    def __init__(self) -> None:
        self._breakers: dict[str, CircuitBreaker] = {}
        self.num_openings = 0  #: of all, since the start
        self._out: OrderedDict[str, None] = OrderedDict()  # not closed, longest first

    def add(self, replica_id: str) -> None:
        """A new replica: closed."""
        self._breakers[replica_id] = CircuitBreaker()
        self._out.pop(replica_id, None)

    def remove(self, replica_id: str) -> list[str]:
        """The replica is gone. Returns whose breakers were closed, so that half of the rest stays in."""
        self._breakers.pop(replica_id, None)
        self._out.pop(replica_id, None)
        closed = []
        while len(self._out) > len(self._breakers) // 2:
            closed.append(self._out.popitem(last=False)[0])
            self._breakers[closed[-1]].close()
        return closed

    def record(self, replica_id: str, key: Key, outcome: Outcome, now: float) -> None:
        """How an attempt on that replica ended; nothing for a replica that is not here.

        While a breaker is not closed only its probe counts: what else ends was sent before.
        """
        breaker = self._breakers.get(replica_id)
        if breaker is None or (breaker.state is not BreakerState.CLOSED and breaker.probe != key):
            return
        match outcome:
            case Outcome.NEUTRAL:
                breaker.returned(key)
            case Outcome.OK:
                breaker.close()
                self._out.pop(replica_id, None)
            case Outcome.FAILED if breaker.state is BreakerState.HALF_OPEN:
                self._open(breaker, now)
            case Outcome.FAILED:
                breaker.num_failures += 1
                if breaker.num_failures >= FAILURES_TO_OPEN and len(self._out) < len(self._breakers) // 2:
                    self._open(breaker, now)
                    self._out[replica_id] = None

    def _open(self, breaker: CircuitBreaker, now: float) -> None:
        breaker.open(now)
        self.num_openings += 1

    def pass_time(self, now: float) -> list[str]:
        """Call a few times a second. Returns whose breakers are not closed."""
        for name in self._out:
            self._breakers[name].pass_time(now)
        return list(self._out)

    def allows(self, replica_id: str) -> bool:
        return self._breakers[replica_id].allows

    def dispatched(self, replica_id: str, key: Key, now: float, num_output_tokens: int = 0) -> None:
        """`num_output_tokens`: given by the replica so far."""
        self._breakers[replica_id].dispatched(key, now, num_output_tokens)

    def reported(self, replica_id: str, num_output_tokens: int, granted: Container[Key]) -> None:
        """Who gives tokens while its probe runs (it is no longer among the `granted`) is let in: streams are long."""
        breaker = self._breakers[replica_id]
        if breaker.probe is None or breaker.probe in granted or num_output_tokens <= breaker.probe_tokens:
            return
        breaker.let_in()
        self._out.pop(replica_id, None)

    def returned(self, replica_id: str, key: Key) -> None:
        """A grant was not used."""
        breaker = self._breakers.get(replica_id)
        if breaker is not None:
            breaker.returned(key)

    def state(self, replica_id: str) -> BreakerState:
        return self._breakers[replica_id].state

    def check_invariants(self) -> None:
        out = {name for name, breaker in self._breakers.items() if breaker.state is not BreakerState.CLOSED}
        assert out == set(self._out)
        assert len(out) <= len(self._breakers) // 2, "more than half of the fleet is out"
        assert all(b.probe is None or b.state is BreakerState.HALF_OPEN for b in self._breakers.values())
