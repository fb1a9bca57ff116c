"""Records: one line a request, in arrays, so that a million requests fit into memory; and samples over time."""

from array import array
from enum import IntEnum

import msgspec

from deployments.simulation.workload import Arrival

NEVER = -1.0
_MAX_SAMPLES = 1000


class End(IntEnum):
    """What became of a request."""

    PENDING = 0
    DONE = 1
    REFUSED = 2  #: no place in the queue
    LATE = 3  #: its deadline passed, in the queue or later


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """The cluster at one moment."""

    at: float
    num_queued: int  #: in all shards
    num_running: int  #: in all replicas, waiting there included
    spread: float  #: standard deviation of what replicas hold, over the places each has


class Records:
    """Columns by request number. Times are seconds from the start, `NEVER` until they come."""

    def __init__(self) -> None:
        self.arrived, self.granted, self.first, self.ended = (array("d") for _ in range(4))
        self.prompt_tokens, self.output_tokens, self.cached_tokens = (array("l") for _ in range(3))
        self.tenant, self.end, self.num_attempts = array("H"), array("b"), array("H")
        self.tenants: dict[str, int] = {}
        self.samples: list[Sample] = []
        self.sample_every_s = 0.1

    def __len__(self) -> int:
        return len(self.arrived)

    def open(self, arrival: Arrival) -> int:
        """Begin a line; returns its number."""
        number = len(self.arrived)
        self.arrived.append(arrival.at)
        for column in (self.granted, self.first, self.ended):
            column.append(NEVER)
        self.prompt_tokens.append(arrival.prompt_tokens)
        self.output_tokens.append(arrival.output_tokens)
        self.cached_tokens.append(0)
        self.tenant.append(self.tenants.setdefault(arrival.tenant, len(self.tenants)))
        self.end.append(End.PENDING)
        self.num_attempts.append(1)
        return number

    def close(self, number: int, end: End, now: float) -> None:
        """A request has ended: once and for all."""
        assert self.end[number] == End.PENDING, f"request {number} ends a second time"
        self.end[number] = end
        self.ended[number] = now

    def sample(self, sample: Sample) -> None:
        """Keep a sample; of too many every second one is dropped, and they become rarer."""
        self.samples.append(sample)
        if len(self.samples) > _MAX_SAMPLES:
            del self.samples[::2]
            self.sample_every_s *= 2.0
