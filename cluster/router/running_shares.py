"""RunningShares: what each tenant's requests hold of the replicas, and who has to leave some of the rest to others.

While other tenants have asked within the last minute, one that holds more than its fair share leaves some room free, so
that a newcomer of another finds a place at once and does not wait until an answer ends. The room is what the others
may want next: twice the square root of what they hold, and one place more (`SPREAD`); and never so much that the tenant
could not hold `SHARE_OF_FREE` times its weight of what is free (a dynamic threshold, as on the queue). A tenant that is
alone, or within its share, leaves nothing; nor does one a little over it that asks for no more than its part: that is a
peak and not a flood. Room and holdings count slots or KV blocks, whichever is scarcer, in
requests of the mean size. Knows no queue and no replica. Each operation: O(1) (amortized).
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.config import TenantConfig

PRESENT_S = 60.0  #: so long after its last request a tenant may come back at any moment
SHARE_OF_FREE = 3.0  #: a tenant of weight 1 may hold so many times what is still free of the replicas
SPREAD = 2.0  #: standard deviations of what the others hold, were they to come independently of each other
PEAK = 1.5  #: times its share a tenant may hold, whose part of all that is asked for is within its share
_STANDARD = TenantConfig()


@dataclass(slots=True)
class Holding:
    """What one tenant's requests hold, or are about to."""

    num_requests: int = 0
    num_tokens: int = 0  #: at their expected end


class RunningShares:
    def __init__(self, standings: Mapping[str, TenantConfig]) -> None:
        self._standings = standings
        self._held: dict[str, Holding] = {}
        self._all = Holding()
        self._present: OrderedDict[str, float] = OrderedDict()  # when each tenant asked last, the oldest first
        self._present_weight = 0.0

    def asked(self, tenant: str, now: float) -> None:
        """A tenant is present."""
        self.pass_time(now)
        if tenant not in self._present:
            self._present_weight += self._weight(tenant)
        self._present[tenant] = now
        self._present.move_to_end(tenant)

    def pass_time(self, now: float) -> None:
        """Who has not asked for long is gone."""
        while self._present:
            tenant, asked_at = next(iter(self._present.items()))
            if asked_at + PRESENT_S > now:
                return
            del self._present[tenant]
            self._present_weight = self._present_weight - self._weight(tenant) if self._present else 0.0

    def take(self, tenant: str, num_tokens: int) -> None:
        """One more request holds a place, of so many tokens at its end."""
        self._add(self._held.setdefault(tenant, Holding()), 1, num_tokens)
        self._add(self._all, 1, num_tokens)

    def give(self, tenant: str, num_tokens: int) -> None:
        """What was taken for one request is free again."""
        holding = self._held[tenant]
        self._add(holding, -1, -num_tokens)
        self._add(self._all, -1, -num_tokens)
        if not holding.num_requests:
            del self._held[tenant]

    @staticmethod
    def _add(holding: Holding, num_requests: int, num_tokens: int) -> None:
        holding.num_requests += num_requests
        holding.num_tokens += num_tokens

    def must_leave(
        self, tenant: str, free_slots: int, free_tokens: int, waiting: int = 0, all_waiting: int = 0
    ) -> bool:
        """Whether what is free now is to be left to others than this tenant, of whom so many of all requests wait."""
        mine = self._held.get(tenant)
        if mine is None or len(self._present) <= (tenant in self._present):
            return False
        size = self._all.num_tokens / self._all.num_requests
        room = min(free_slots, int(free_tokens / size))
        held = max(mine.num_requests, mine.num_tokens / size)
        weight = self._weight(tenant)
        present = self._present_weight + (0.0 if tenant in self._present else weight)
        share = weight / present * (self._all.num_requests + room)
        asks_no_more = held + waiting <= weight / present * (self._all.num_requests + all_waiting)
        if held + 1 <= share * (PEAK if asks_no_more else 1.0):
            return False
        wanted = 1 + SPREAD * math.sqrt(self._all.num_requests - mine.num_requests)
        return room <= min(wanted, held / (SHARE_OF_FREE * weight))

    def held(self) -> dict[str, int]:
        """Requests of each tenant that hold a place."""
        return {tenant: holding.num_requests for tenant, holding in self._held.items()}

    def _weight(self, tenant: str) -> float:
        return self._standings.get(tenant, _STANDARD).weight

    def check_invariants(self) -> None:
        assert self._all.num_requests == sum(holding.num_requests for holding in self._held.values())
        assert self._all.num_tokens == sum(holding.num_tokens for holding in self._held.values())
        assert all(holding.num_requests > 0 for holding in self._held.values())
        weights = sum(self._weight(tenant) for tenant in self._present)
        assert abs(self._present_weight - weights) < 1e-6 * (1 + weights)
