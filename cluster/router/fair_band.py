"""FairBand: the order of the requests of one priority: migrations first, then tenants by virtual token counters.

Each tenant has a counter of the cost it was served, divided by its weight; the turn is that of the smallest. Who comes
back from idleness is lifted to the counter last served, so idle time is no savings; a debt stays. So two tenants that
both wait all the time differ in served cost per weight by at most the largest request of each. Inside a tenant: first
come, first served, the wait in other shards included. Every operation is O(log n): what leaves early stays in the heaps
as a dead entry and is skipped; a heap is rebuilt when half of it is dead.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cluster.config import TenantConfig
from cluster.router.waiting import Waiting

MAX_IDLE_TENANTS = 1024  #: remembered in a band; beyond, the longest idle one's counter is forgotten
LOOKS = 32  #: tenants are passed over at most, to find one whose turn it may be
_Line = list[tuple[float, int, Waiting]]  # (since, number of arrival, entry)
_STANDARD = TenantConfig()


@dataclass(slots=True)
class Tenant:
    """One tenant's line in a band."""

    weight: float
    counter: float  #: cost served, over `weight`
    line: _Line = field(default_factory=list)
    num_waiting: int = 0  #: entries of `line` that are not dead
    place: float | None = None  #: its counter as it stands in the band's heap; None: not there


class FairBand:
    """Entries with `had_turn` or taken out are dead; the queue says when (`left`)."""

    def __init__(self, standings: Mapping[str, TenantConfig]) -> None:
        self._standings = standings
        self._migrations: _Line = []
        self._num_migrations = 0
        self._tenants: OrderedDict[str, Tenant] = OrderedDict()  # longest untouched first
        self._turns: list[tuple[float, str]] = []  # (counter, tenant), some of them out of date
        self._clock = 0.0  # the counter last served
        self._num_arrived = 0
        self._num_active = 0
        self._active_weight = 0.0

    @property
    def num_tenants(self) -> int:
        """Remembered, idle ones included."""
        return len(self._tenants)

    def push(self, entry: Waiting) -> None:
        self._num_arrived += 1
        row = (entry.since, self._num_arrived, entry)
        if entry.is_migration:
            self._num_migrations += 1
            heapq.heappush(self._migrations, row)
            return
        tenant = self._tenant(entry.tenant)
        if not tenant.num_waiting:
            self._num_active += 1
            self._active_weight += tenant.weight
            tenant.counter = max(tenant.counter, self._clock)
        tenant.num_waiting += 1
        heapq.heappush(tenant.line, row)
        self._settle(entry.tenant, tenant)

    def peek(self, must_wait: Callable[[str], bool] = lambda name: False) -> Waiting | None:
        """Whose turn it is. Up to `LOOKS` tenants that `must_wait` are passed over: more do not flood, they share."""
        migration = _head(self._migrations)
        if migration is not None:
            return migration
        passed: list[tuple[float, str]] = []
        while (turn := self._next_turn()) is not None and must_wait(turn[1]):
            passed.append(heapq.heappop(self._turns))
            if len(passed) == LOOKS:
                turn = passed[0]
                break
        for row in passed:
            heapq.heappush(self._turns, row)
        return None if turn is None else _head(self._tenants[turn[1]].line)

    def _next_turn(self) -> tuple[float, str] | None:
        """The first row of the heap that is not out of date."""
        while self._turns:
            counter, name = self._turns[0]
            tenant = self._tenants.get(name)
            if tenant is not None and tenant.place == counter and tenant.num_waiting:
                return self._turns[0]
            heapq.heappop(self._turns)
            if tenant is not None and tenant.place == counter:
                tenant.place = None
        return None

    def left(self, entry: Waiting) -> None:
        """This entry, pushed before, is dead now: it had its turn or was taken out."""
        if entry.is_migration:
            self._num_migrations -= 1
            _compact(self._migrations, self._num_migrations)
            return
        tenant = self._tenants[entry.tenant]
        tenant.num_waiting -= 1
        _compact(tenant.line, tenant.num_waiting)
        if not tenant.num_waiting:
            self._num_active -= 1
            self._active_weight = self._active_weight - tenant.weight if self._num_active else 0.0
            self._forget_idle()

    def served(self, entry: Waiting) -> None:
        """It is this entry's turn: the counter of its tenant is the band's clock. Call before `left`."""
        if not entry.is_migration:
            self._clock = max(self._clock, self._tenants[entry.tenant].counter)

    def charge(self, name: str, cost: float) -> None:
        """Add to a tenant's counter; a negative `cost` gives back."""
        tenant = self._tenant(name)
        tenant.counter += cost / tenant.weight
        self._settle(name, tenant)

    def share(self, name: str) -> float:
        """The part of the band's service that a tenant gets while those who wait now go on waiting. O(1)."""
        tenant = self._tenants.get(name)
        if tenant is not None and tenant.num_waiting:
            return tenant.weight / self._active_weight
        weight = self._standings.get(name, _STANDARD).weight
        return weight / (weight + self._active_weight)

    def _tenant(self, name: str) -> Tenant:
        tenant = self._tenants.get(name)
        if tenant is None:
            weight = self._standings.get(name, _STANDARD).weight
            tenant = self._tenants[name] = Tenant(weight, self._clock)
            self._forget_idle()
        self._tenants.move_to_end(name)
        return tenant

    def _settle(self, name: str, tenant: Tenant) -> None:
        """Let the heap know a tenant's counter."""
        if tenant.num_waiting and tenant.place != tenant.counter:
            tenant.place = tenant.counter
            heapq.heappush(self._turns, (tenant.counter, name))
            if len(self._turns) > 64 and len(self._turns) > 4 * self._num_active:
                self._rebuild_turns()

    def _rebuild_turns(self) -> None:
        for tenant in self._tenants.values():
            tenant.place = tenant.counter if tenant.num_waiting else None
        self._turns = [(t.place, name) for name, t in self._tenants.items() if t.place is not None]
        heapq.heapify(self._turns)

    def _forget_idle(self) -> None:
        """Bound the memory of tenants with nothing to do: O(1), looks at the longest untouched only."""
        while len(self._tenants) - self._num_active > MAX_IDLE_TENANTS:
            name, tenant = next(iter(self._tenants.items()))
            if tenant.num_waiting:
                self._tenants.move_to_end(name)
            else:
                del self._tenants[name]

    def check_invariants(self) -> None:
        assert self._num_migrations == sum(row[2].waits_for_turn for row in self._migrations)
        assert self._num_active == sum(tenant.num_waiting > 0 for tenant in self._tenants.values())
        weights = sum(tenant.weight for tenant in self._tenants.values() if tenant.num_waiting)
        assert abs(self._active_weight - weights) < 1e-6 * (1 + weights)
        for name, tenant in self._tenants.items():
            live = [row for row in tenant.line if row[2].waits_for_turn]
            assert tenant.num_waiting == len(live), name
            assert not live or tenant.place == tenant.counter, f"{name} stands at a wrong place"
            assert tenant.place is None or (tenant.place, name) in self._turns


def _head(line: _Line) -> Waiting | None:
    """The first entry that is not dead."""
    while line and not line[0][2].waits_for_turn:
        heapq.heappop(line)
    return line[0][2] if line else None


def _compact(line: _Line, num_live: int) -> None:
    if len(line) > 64 and len(line) > 2 * num_live:
        line[:] = [row for row in line if row[2].waits_for_turn]
        heapq.heapify(line)
