"""QueueShares: how much of one bounded queue each tenant holds, and who may still come in.

A tenant may hold a multiple of what is free (a dynamic threshold): one alone can fill most of the queue and never all
of it, and where more come the shares shrink until something is free for each. One that holds less than its fair share
by weight comes in nevertheless: the newest request of who holds the most has to go. Each operation: O(log n).
"""

import heapq
from itertools import islice

from cluster.config import RouterConfig, TenantConfig
from cluster.frames import Enqueue
from cluster.router.waiting import Key, Waiting

SHARE_OF_FREE = 4.0  #: a tenant of weight 1 may hold so many times what is still free of the queue
LOOKS = 32  #: of a tenant's newest requests are looked at, for one that may be pushed out
_STANDARD = TenantConfig()


class QueueShares:
    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self.num_requests = self.num_tokens = 0  #: prompt tokens
        self._lines: dict[str, dict[Key, Waiting]] = {}  # by tenant, the oldest first
        self._tokens: dict[str, int] = {}
        self._largest: list[tuple[float, str]] = []  # heap of (-part by weight, tenant), some of them out of date
        self._weights = 0.0  # of all who wait

    def add(self, entry: Waiting) -> None:
        tenant = entry.tenant
        if tenant not in self._lines:
            self._weights += self._weight(tenant)
        self._lines.setdefault(tenant, {})[entry.key] = entry
        self._count(tenant, 1, entry.descriptor.num_prompt_tokens)

    def drop(self, entry: Waiting) -> None:
        tenant = entry.tenant
        del self._lines[tenant][entry.key]
        self._count(tenant, -1, -entry.descriptor.num_prompt_tokens)
        if not self._lines[tenant]:
            del self._lines[tenant], self._tokens[tenant]
            self._weights = self._weights - self._weight(tenant) if self._lines else 0.0

    def _count(self, tenant: str, num_requests: int, num_tokens: int) -> None:
        self.num_requests += num_requests
        self.num_tokens += num_tokens
        self._tokens[tenant] = self._tokens.get(tenant, 0) + num_tokens
        heapq.heappush(self._largest, (-self._part(tenant), tenant))
        if len(self._largest) > 64 and len(self._largest) > 4 * len(self._lines):
            self._largest = [(-self._part(name), name) for name in self._lines]
            heapq.heapify(self._largest)

    # Who may come in

    def is_full(self, asked: Enqueue) -> bool:
        """Whether one more such request may not wait. An empty queue takes any request."""
        too_many_tokens = self.num_tokens + asked.num_prompt_tokens > self._config.max_queued_tokens
        return self.num_requests > 0 and (self.num_requests >= self._config.max_queued_requests or too_many_tokens)

    def is_over_share(self, asked: Enqueue) -> bool:
        """Whether the tenant holds its multiple of what is free already."""
        portion = SHARE_OF_FREE * self._weight(asked.tenant)
        free_requests = self._config.max_queued_requests - self.num_requests
        free_tokens = self._config.max_queued_tokens - self.num_tokens
        requests, tokens = len(self._lines.get(asked.tenant, ())), self._tokens.get(asked.tenant, 0)
        return requests > 0 and (requests >= portion * free_requests or tokens >= portion * free_tokens)

    def has_others(self, tenant: str) -> bool:
        """Whether another tenant waits here."""
        return len(self._lines) > (tenant in self._lines)

    def has_right(self, asked: Enqueue) -> bool:
        """Whether the tenant stays within its fair share beside others, and there is or can be made room."""
        if not self.has_others(asked.tenant):
            return False
        new_weight = 0.0 if asked.tenant in self._lines else self._weight(asked.tenant)
        part = self._part(asked.tenant, 1, asked.num_prompt_tokens)
        if part * (self._weights + new_weight) > 1.0:
            return False
        return not self.is_full(asked) or self.to_push_out(asked) is not None

    def to_push_out(self, asked: Enqueue) -> Waiting | None:
        """The newest request of who holds the most for its weight; None if that is `asked`'s tenant, or within its
        share."""
        new_weight = 0.0 if asked.tenant in self._lines else self._weight(asked.tenant)
        while self._largest:
            part, tenant = self._largest[0]
            if tenant in self._lines and part == -self._part(tenant):
                is_over = -part * (self._weights + new_weight) > 1.0 and tenant != asked.tenant
                newest = islice(reversed(self._lines[tenant].values()), LOOKS if is_over else 0)
                return next((entry for entry in newest if entry.may_be_refused), None)
            heapq.heappop(self._largest)
        return None

    def _part(self, tenant: str, more_requests: int = 0, more_tokens: int = 0) -> float:
        """Of the whole queue, over the tenant's weight."""
        requests = len(self._lines.get(tenant, ())) + more_requests
        tokens = self._tokens.get(tenant, 0) + more_tokens
        part = max(requests / self._config.max_queued_requests, tokens / self._config.max_queued_tokens)
        return part / self._weight(tenant)

    def _weight(self, tenant: str) -> float:
        return self._config.tenants.get(tenant, _STANDARD).weight

    def num_requests_of(self, tenant: str) -> int:
        return len(self._lines.get(tenant, ()))

    def tenants(self) -> dict[str, dict[str, int]]:
        """What each tenant has waiting."""
        return {name: {"requests": len(line), "tokens": self._tokens[name]} for name, line in self._lines.items()}

    def check_invariants(self) -> None:
        lines = self._lines.items()
        assert self.num_requests == sum(len(line) for _, line in lines)
        assert self.num_tokens == sum(self._tokens.values())
        assert self._tokens == {
            name: sum(e.descriptor.num_prompt_tokens for e in line.values()) for name, line in lines
        }
        weights = sum(self._weight(tenant) for tenant in self._lines)
        assert abs(self._weights - weights) < 1e-6 * (1 + weights)
        assert {(-self._part(tenant), tenant) for tenant in self._lines} <= set(self._largest)
