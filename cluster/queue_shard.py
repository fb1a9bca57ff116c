"""QueueShard: the bounded queue in which requests of one model wait; owns their order and their deadlines.

Lower priority value first, first come first served inside it. Knows no replica. Every operation is O(log n): entries
taken out early stay in the heaps as dead entries and are skipped, and a heap is rebuilt when half of it is dead.
"""

import heapq
from dataclasses import dataclass, field

from cluster.frames import Enqueue

Key = tuple[str, int]  #: (request id, attempt)


@dataclass(slots=True)
class Waiting:
    """A queued request."""

    descriptor: Enqueue
    gateway: str  #: who asked, and gets the answer
    enqueued_at: float
    deadline: float

    @property
    def key(self) -> Key:
        return (self.descriptor.request_id, self.descriptor.attempt)


@dataclass(slots=True)
class QueueShard:
    max_requests: int
    max_tokens: int
    num_tokens: int = 0  #: prompt tokens waiting
    _entries: dict[Key, Waiting] = field(default_factory=dict)
    _order: list[tuple[float, int, Key]] = field(default_factory=list)
    _deadlines: list[tuple[float, int, Key]] = field(default_factory=list)
    _arrivals: int = 0

    def __len__(self) -> int:
        return len(self._entries)

    def is_full(self, descriptor: Enqueue) -> bool:
        """Whether one more such request may not wait. An empty queue takes any request."""
        if not self._entries:
            return False
        too_many_tokens = self.num_tokens + descriptor.num_prompt_tokens > self.max_tokens
        return len(self._entries) >= self.max_requests or too_many_tokens

    def push(self, entry: Waiting) -> None:
        """Add; a second push of the same key changes nothing (a gateway repeats itself after a reconnect)."""
        if entry.key in self._entries:
            return
        self._arrivals += 1
        self._entries[entry.key] = entry
        self.num_tokens += entry.descriptor.num_prompt_tokens
        heapq.heappush(self._order, (entry.descriptor.priority, self._arrivals, entry.key))
        heapq.heappush(self._deadlines, (entry.deadline, self._arrivals, entry.key))

    def peek(self) -> Waiting | None:
        """The request whose turn it is."""
        while self._order:
            entry = self._entries.get(self._order[0][2])
            if entry is not None:
                return entry
            heapq.heappop(self._order)
        return None

    def remove(self, key: Key) -> Waiting | None:
        """Take a request out, wherever it stands; None if it does not wait here."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.num_tokens -= entry.descriptor.num_prompt_tokens
            self._compact()
        return entry

    def expire(self, now: float) -> list[Waiting]:
        """Take out all requests whose deadline has passed."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            entry = self.remove(heapq.heappop(self._deadlines)[2])
            if entry is not None:
                expired.append(entry)
        return expired

    def of_gateway(self, gateway: str) -> list[Key]:
        """Keys of the requests that one gateway waits for."""
        return [key for key, entry in self._entries.items() if entry.gateway == gateway]

    def _compact(self) -> None:
        for heap in (self._order, self._deadlines):
            if len(heap) > 64 and len(heap) > 2 * len(self._entries):
                heap[:] = [item for item in heap if item[2] in self._entries]
                heapq.heapify(heap)

    def check_invariants(self) -> None:
        """Counters equal what is there, and every waiting request can be found in both orders."""
        assert self.num_tokens == sum(e.descriptor.num_prompt_tokens for e in self._entries.values())
        assert set(self._entries) <= {key for _, _, key in self._order}
        assert set(self._entries) <= {key for _, _, key in self._deadlines}
        assert all(key == entry.key for key, entry in self._entries.items())
