"""QueueShard: the bounded queue in which requests of one model wait; owns order, bounds and deadlines.

Priority bands, the lower value first; inside one the order of `cluster.router.fair_band`. A request whose turn has come
may still wait here, outside of the order, for a replica that can take it. Knows no replica. Each operation: O(log n).
"""

import heapq
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from cluster.config import RouterConfig
from cluster.frames import Enqueue
from cluster.router.fair_band import FairBand
from cluster.router.queue_shares import QueueShares
from cluster.router.waiting import Key, Waiting

MAX_IDLE_BANDS = 16  #: remembered with the counters of their tenants
T = TypeVar("T")


class QueueShard:
    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self.shares = QueueShares(config)
        self.cost = 0  #: of all that waits
        self._entries: dict[Key, Waiting] = {}
        self._gateways: dict[str, dict[Key, None]] = {}
        self._bands: dict[int, FairBand] = {}
        self._filled: list[int] = []  # heap: priorities of bands with entries, some emptied meanwhile
        self._deadlines: list[tuple[float, int, Key]] = []
        self._costs: dict[tuple[int, str], int] = {}  # of who waits, by band and tenant
        self._band_costs: dict[int, int] = {}
        self.num_in_bands: Counter[int] = Counter()  # who waits for a turn
        self._num_pushed = 0

    def __len__(self) -> int:
        return len(self._entries)

    def cost_ahead(self, asked: Enqueue) -> float:
        """Work that goes before a new request: all of more urgent bands, and what its tenant's turns let pass first."""
        more_urgent = sum(cost for priority, cost in self._band_costs.items() if priority < asked.priority)
        in_band = self._band_costs.get(asked.priority, 0)
        band = self._bands.get(asked.priority)
        own = self._costs.get((asked.priority, asked.tenant), 0)
        return more_urgent + (min(in_band, own / band.share(asked.tenant)) if band is not None else 0.0)

    # Order

    def push(self, entry: Waiting) -> None:
        """Add; a second push of the same key changes nothing (a gateway repeats itself after a reconnect)."""
        if entry.key in self._entries:
            return
        self._num_pushed += 1
        self._entries[entry.key] = entry
        self._gateways.setdefault(entry.gateway, {})[entry.key] = None
        entry.is_queued = True
        self.shares.add(entry)
        self._count(entry, 1)
        heapq.heappush(self._deadlines, (entry.deadline, self._num_pushed, entry.key))
        self._order(entry)

    def _order(self, entry: Waiting) -> None:
        priority = entry.descriptor.priority
        band = self._bands.get(priority)
        if band is None:
            band = self._bands[priority] = FairBand(self._config.tenants)
        if not self.num_in_bands[priority]:
            heapq.heappush(self._filled, priority)
        self.num_in_bands[priority] += 1
        band.push(entry)

    def peek(self) -> Waiting | None:
        """The request whose turn it is."""
        while self._filled:
            priority = self._filled[0]
            if self.num_in_bands[priority]:
                return self._bands[priority].peek()
            heapq.heappop(self._filled)
        return None

    def peek_past(self, must_wait: Callable[[str], bool]) -> Waiting | None:
        """The request whose turn it is, were there no tenants that `must_wait`."""
        for priority in sorted(self.num_in_bands):
            entry = self._bands[priority].peek(must_wait)
            if entry is not None:
                return entry
        return None

    def take_turn(self, entry: Waiting, cost: float) -> None:
        """The turn of `entry` is used: its tenant is charged `cost`. It goes on waiting until it is removed."""
        band = self._bands[entry.descriptor.priority]
        band.served(entry)
        entry.had_turn = True
        self._leave_order(entry)
        band.charge(entry.tenant, cost)

    def adjust(self, priority: int, tenant: str, cost: float) -> None:
        """Charge a tenant `cost` more, or less if negative."""
        band = self._bands.get(priority)
        if band is not None:
            band.charge(tenant, cost)

    def remove(self, key: Key) -> Waiting | None:
        """Take a request out, wherever it stands; None if it does not wait here."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        mine = self._gateways[entry.gateway]
        del mine[key]
        if not mine:
            del self._gateways[entry.gateway]
        entry.is_queued = False
        if not entry.had_turn:
            self._leave_order(entry)
        self.shares.drop(entry)
        self._count(entry, -1)
        if len(self._deadlines) > 64 and len(self._deadlines) > 2 * len(self._entries):
            self._deadlines = [item for item in self._deadlines if item[2] in self._entries]
            heapq.heapify(self._deadlines)
        return entry

    def _leave_order(self, entry: Waiting) -> None:
        priority = entry.descriptor.priority
        self.num_in_bands[priority] -= 1
        self._bands[priority].left(entry)
        if not self.num_in_bands[priority]:
            del self.num_in_bands[priority]
            self._forget_idle_bands()

    def _forget_idle_bands(self) -> None:
        if len(self._bands) > MAX_IDLE_BANDS + len(self.num_in_bands):
            idle = next(priority for priority in self._bands if priority not in self.num_in_bands)
            del self._bands[idle]

    def _count(self, entry: Waiting, sign: int) -> None:
        asked = entry.descriptor
        self.cost += sign * entry.cost
        _add(self._costs, (asked.priority, asked.tenant), sign * entry.cost)
        _add(self._band_costs, asked.priority, sign * entry.cost)

    def expire(self, now: float) -> list[Waiting]:
        """Take out all requests whose deadline has passed."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            entry = self.remove(heapq.heappop(self._deadlines)[2])
            if entry is not None:
                expired.append(entry)
        return expired

    def get(self, key: Key) -> Waiting | None:
        return self._entries.get(key)

    def of_gateway(self, gateway: str) -> list[Key]:
        """Keys of the requests that one gateway waits for."""
        return list(self._gateways.get(gateway, ()))

    def check_invariants(self) -> None:
        """Counters equal what is there, and every waiting request can be found in its order and by its deadline."""
        entries = self._entries.values()
        self.shares.check_invariants()
        assert self.shares.num_requests == len(entries)
        assert self.cost == sum(entry.cost for entry in entries) == sum(self._band_costs.values())
        assert set(self._entries) <= {key for _, _, key in self._deadlines}
        assert all(key == entry.key and entry.is_queued for key, entry in self._entries.items())
        assert self.num_in_bands == Counter(e.descriptor.priority for e in entries if not e.had_turn)
        assert set(self.num_in_bands) <= set(self._filled)
        for band in self._bands.values():
            band.check_invariants()


def _add(counts: dict[T, int], key: T, number: int) -> None:
    """Add to a count that is kept only while it is not zero."""
    total = counts.get(key, 0) + number
    if total:
        counts[key] = total
    else:
        counts.pop(key, None)
