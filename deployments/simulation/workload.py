"""What clients ask of a simulated cluster: arrivals read from a trace file or drawn from a seed, always one by one.

Prompts are not drawn: a prompt is a name and then equal tokens, which makes shared prefixes shared and everything else
different (`prompt_of`). A trace is a file of JSON lines, one `Arrival` each, in the order of arrival.
"""

import heapq
import itertools
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from deployments.simulation.cost_model import CostModel
from engine.errors import ConfigError

FILLER_TOKEN_ID = 1
FIRST_GROUP_TOKEN_ID = 2
FIRST_REQUEST_TOKEN_ID = 2**31

PositiveInt = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]


class Arrival(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One request of a trace."""

    at: Annotated[float, Meta(ge=0.0)]  #: seconds after the start
    prompt_tokens: PositiveInt
    output_tokens: PositiveInt  #: that the model will generate; known to the engine alone, as it comes
    max_tokens: Count = 0  #: that the client allows, which is what the router knows; 0: `output_tokens`
    group: Count = 0  #: who shares a prefix: requests of one tenant and group; 0: nobody
    prefix_tokens: Count = 0  #: leading prompt tokens that are the group's
    tenant: str = "default"
    priority: int = 0
    session: str = ""


class Lengths(msgspec.Struct, frozen=True):
    """Token counts from `low` to `high`, drawn evenly on a logarithmic scale: long ones are rare."""

    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        return min(self.high, int(math.exp(rng.uniform(math.log(self.low), math.log(self.high + 1)))))

    @property
    def mean(self) -> float:
        """Expected value."""
        width = self.high + 1 - self.low
        return self.low if width <= 1 else width / math.log((self.high + 1) / self.low) - 0.5


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """A stream of requests by a law of chance. Workloads can be merged (`merge`)."""

    rate: float  #: requests per second, on average
    prompt: Lengths
    output: Lengths
    max_tokens: int = 0  #: that clients allow; 0: what they will get
    burst: float = 1.0  #: rate in the first tenth of each period, against the average; 1 is plain Poisson, at most 10
    burst_period_s: float = 10.0
    num_groups: int = 0  #: shared prefixes, the n-th asked for in proportion to 1/n; 0: none
    prefix: Lengths = Lengths(512, 2048)  #: of each group; its requests' prompts come on top
    tenants: dict[str, float] = {}  #: share of the requests by name; none: all are one tenant's
    turns: int = 1  #: of a session; each repeats all before it, the answers too, and adds a prompt
    think_s: float = 10.0  #: from one turn to the next, on average
    start_s: float = 0.0

    def arrivals(self, seed: int) -> Iterator[Arrival]:
        """Endless; equal for equal seeds."""
        rng = random.Random(seed)
        prefixes = [self.prefix.draw(rng) for _ in range(self.num_groups)]
        popularity = list(itertools.accumulate(1.0 / (rank + 1) for rank in range(self.num_groups)))
        tenants = self.tenants or {"default": 1.0}
        names, shares = list(tenants), list(itertools.accumulate(tenants.values()))
        pending: list[tuple[float, int, Arrival, int]] = []  # later turns of sessions
        order = itertools.count(1)
        for at in self._times(rng):
            while pending and pending[0][0] <= at:
                yield self._turn(rng, pending, order)
            tenant = rng.choices(names, cum_weights=shares)[0] if len(names) > 1 else names[0]
            group = rng.choices(range(self.num_groups), cum_weights=popularity)[0] + 1 if self.num_groups else 0
            prefix_tokens = prefixes[group - 1] if group else 0
            first = self._arrival(rng, at, group, prefix_tokens, tenant)
            if self.turns > 1:
                first = _opening(first, self.num_groups + next(order))
                self._plan_next(rng, pending, order, first, self.turns - 1)
            yield first

    def capacity(self, cost: CostModel) -> float:
        """Requests per second of one replica, all places taken and no prefix found: an estimate."""
        prompt = self.prompt.mean + (self.prefix.mean if self.num_groups else 0.0)
        output = self.output.mean
        prompt += (self.turns - 1) / 2 * (prompt + output)
        step_share_s = cost.step_s / cost.max_num_seqs + cost.decode_s + cost.context_s * (prompt + output / 2)
        return 1.0 / (prompt * cost.prefill_s + output * step_share_s)

    def _times(self, rng: random.Random) -> Iterator[float]:
        """Poisson arrivals of sessions whose rate is higher in the first tenth of each period."""
        rate = self.rate / self.turns
        at, period = self.start_s, self.burst_period_s
        while True:
            into = (at - self.start_s) % period
            in_burst = into < 0.1 * period
            current = rate * (self.burst if in_burst else (1.0 - 0.1 * self.burst) / 0.9)
            change = at + (0.1 * period if in_burst else period) - into
            following = at + rng.expovariate(current) if current > 0.0 else math.inf
            if self.burst != 1.0 and following >= change:
                at = math.nextafter(change, math.inf)
                continue
            at = following
            yield at

    def _arrival(self, rng: random.Random, at: float, group: int, prefix_tokens: int, tenant: str) -> Arrival:
        prompt_tokens, output_tokens = prefix_tokens + self.prompt.draw(rng), self.output.draw(rng)
        return Arrival(at, prompt_tokens, output_tokens, self.max_tokens, group, prefix_tokens, tenant)

    def _plan_next(
        self,
        rng: random.Random,
        pending: list[tuple[float, int, Arrival, int]],
        order: Iterator[int],
        last: Arrival,
        turns_left: int,
    ) -> None:
        if turns_left:
            heapq.heappush(pending, (last.at + rng.expovariate(1.0 / self.think_s), next(order), last, turns_left))

    def _turn(
        self, rng: random.Random, pending: list[tuple[float, int, Arrival, int]], order: Iterator[int]
    ) -> Arrival:
        """The next turn that is due; plans the one after it."""
        at, _, last, turns_left = heapq.heappop(pending)
        known = last.prompt_tokens + last.output_tokens
        prompt_tokens = known + self.prompt.draw(rng)
        turn = msgspec.structs.replace(
            last, at=at, prompt_tokens=prompt_tokens, prefix_tokens=prompt_tokens, output_tokens=self.output.draw(rng)
        )
        self._plan_next(rng, pending, order, turn, turns_left - 1)
        return turn


def _opening(first: Arrival, number: int) -> Arrival:
    """The first turn of a session: its group is the session's own, all of its prompt will be repeated."""
    return msgspec.structs.replace(first, group=number, prefix_tokens=first.prompt_tokens, session=f"session-{number}")


def merge(workloads: Iterable[Workload], seed: int) -> Iterator[Arrival]:
    """Several workloads at once, in order of arrival."""
    streams = [workload.arrivals(seed + index) for index, workload in enumerate(workloads)]
    return heapq.merge(*streams, key=lambda arrival: arrival.at)


def prompt_of(arrival: Arrival, number: int) -> list[int]:
    """Token ids of the request with this number: the group's token, filler, the request's own token, filler."""
    shared = min(arrival.prefix_tokens, arrival.prompt_tokens) if arrival.group else 0
    own = arrival.prompt_tokens - shared
    prompt: list[int] = []
    if shared:
        prompt = [FIRST_GROUP_TOKEN_ID + arrival.group, *[FILLER_TOKEN_ID] * (shared - 1)]
    if own:
        prompt += [FIRST_REQUEST_TOKEN_ID + number, *[FILLER_TOKEN_ID] * (own - 1)]
    return prompt


def read_trace(path: Path) -> Iterator[Arrival]:
    """The arrivals of a trace file, line by line. Raises `ConfigError` for what is no trace."""
    decoder = msgspec.json.Decoder(Arrival)
    last = 0.0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    arrival = decoder.decode(line)
                except msgspec.DecodeError as error:
                    raise ConfigError("trace", f"{path}:{number}", f"not an arrival: {error}") from None
                if arrival.at < last:
                    raise ConfigError("trace", f"{path}:{number}", "sort the lines by `at`")
                last = arrival.at
                yield arrival
    except OSError as error:
        raise ConfigError("trace", str(path), f"cannot be read: {error.strerror}") from None


def write_trace(path: Path, arrivals: Iterable[Arrival]) -> None:
    """One JSON line an arrival."""
    encoder = msgspec.json.Encoder()
    with path.open("wb") as lines:
        for arrival in arrivals:
            lines.write(encoder.encode(arrival) + b"\n")
