"""What a request costs, in units of one uncached prompt token: estimated when it comes, corrected when it has ended.

The three prices: a prompt token that must be computed, one found in a cache, and an output token. Output is expected
from what the tenant's requests gave before.
"""

from collections import OrderedDict
from dataclasses import dataclass

UNCACHED_PRICE = 1.0
CACHED_PRICE = 0.1
OUTPUT_PRICE = 6.0  #: a decode step reads all weights and the sequence's cache for one token (docs/simulation.md)
MAX_TENANTS = 4096  #: with a memory of their own, in one model
PRIOR_TOKENS = 256  #: expected of an answer while none has ended: the usual `max_tokens` is far from what comes
_MEMORY = 16  #: requests over which a mean is taken, the newest counting most


def price(num_prompt_tokens: int, num_cached_tokens: int, num_output_tokens: int) -> int:
    """Whole units, so that sums stay exact; at least 1."""
    uncached = num_prompt_tokens - num_cached_tokens
    return max(
        1, round(UNCACHED_PRICE * uncached + CACHED_PRICE * num_cached_tokens + OUTPUT_PRICE * num_output_tokens)
    )


@dataclass(slots=True)
class Mean:
    """Moving mean: plain over the first `_MEMORY` values, then exponential."""

    value: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.count = min(self.count + 1, _MEMORY)
        self.value += (value - self.value) / self.count


class OutputLengths:
    """Learns how long the answers of one model are, in all and by tenant."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, Mean] = OrderedDict()
        self._all = Mean()
        self._allowed = Mean()
        self._asked = Mean()

    def note(self, max_tokens: int) -> None:
        """A request has come that may emit so much."""
        self._asked.add(max_tokens)

    def learn(self, tenant: str, num_output_tokens: int, max_tokens: int) -> None:
        """A request has ended by itself."""
        self._tenants.setdefault(tenant, Mean()).add(num_output_tokens)
        self._tenants.move_to_end(tenant)
        if len(self._tenants) > MAX_TENANTS:
            self._tenants.popitem(last=False)
        self._all.add(num_output_tokens)
        self._allowed.add(max_tokens)

    def expect(self, tenant: str, num_emitted: int, max_tokens: int) -> int:
        """Tokens still to come of a request that has emitted some and may emit `max_tokens` more; at least 1."""
        mean = self._tenants.get(tenant, self._all)
        known = max(mean.value - num_emitted, mean.value / 4)
        expected = known if mean.count else PRIOR_TOKENS
        return max(1, min(max_tokens, round(expected)))

    @property
    def ratio(self) -> float:
        """Part of the allowed output that really comes; at most 1."""
        if self._allowed.count:
            return min(1.0, self._all.value / self._allowed.value)
        return min(1.0, PRIOR_TOKENS / self._asked.value) if self._asked.count else 1.0
