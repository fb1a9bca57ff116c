"""Gateways: the clients' side of a simulation. They own the requests, as the real dispatcher does, on simulated time.

An arrival is described to a shard; its grant sends the prompt to the replica; a replica's death sends it back to a
shard as the next attempt, with what was emitted. What happened goes into the records.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cluster.frames import Ended, Enqueue, FromRouter, Grant, Move, Outcome, Refuse, ToRouter, Withdraw
from cluster.generation import RequestContext
from cluster.streams.descriptor import Identity, identify
from cluster.streams.shard_choice import ShardChooser
from deployments.simulation.cost_model import CostModel
from deployments.simulation.records import NEVER, End, Records
from deployments.simulation.workload import FILLER_TOKEN_ID, Arrival, prompt_of
from engine.request import GenerateRequest, SamplingParams, TokenChunk

MODEL = "simulated"
Key = tuple[str, int]


@dataclass(slots=True, eq=False)
class Flight:
    """One request on its way."""

    number: int
    arrival: Arrival
    deadline: float
    gateway: str
    shard: int
    identity: Identity
    attempt: int = 0
    num_emitted: int = 0  #: by earlier attempts
    num_cached_tokens: int = 0  #: found by this attempt
    replica_id: str | None = None
    avoid: list[str] = field(default_factory=list)

    @property
    def key(self) -> Key:
        return (str(self.number), self.attempt)

    @property
    def max_tokens(self) -> int:
        """What the client allows for the whole answer."""
        return self.arrival.max_tokens or self.arrival.output_tokens


class Network(Protocol):
    """Carries the gateways' messages, each after its delay."""

    def to_shard(self, shard: int, gateway: str, message: ToRouter) -> None: ...

    def to_replica(self, replica_id: str, request: GenerateRequest) -> bool:
        """False if the replica is known to be gone."""
        ...

    def cancel(self, replica_id: str, request_id: str) -> None: ...


class Gateways:
    """All gateways of a simulation; each request belongs to one of them by its number."""

    def __init__(
        self, names: Sequence[str], num_shards: int, cost: CostModel, timeout_s: float, records: Records
    ) -> None:
        self.num_moved = 0
        self._names, self._shards, self._timeout_s = names, range(num_shards), timeout_s
        self._info = cost.engine_info()
        self._records = records
        self._chooser = ShardChooser()
        self._network: Network
        self._flights: dict[str, Flight] = {}
        self._open: deque[int] = deque()  # numbers in order of arrival, which is that of the deadlines

    @property
    def num_in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._flights)

    def connect(self, network: Network) -> None:
        """Say who carries the messages."""
        self._network = network

    def arrive(self, arrival: Arrival) -> None:
        """A client asks."""
        number = self._records.open(arrival)
        gateway = self._names[number % len(self._names)]
        context = RequestContext(model=MODEL, tenant=arrival.tenant, timeout_s=self._timeout_s)
        identity = identify(_request(arrival, number), context, self._info)
        shard = self._chooser.choose(identity.shard_key, self._shards)
        assert shard is not None, "there is at least one shard"
        flight = Flight(number, arrival, arrival.at + self._timeout_s, gateway, shard, identity)
        self._flights[str(number)] = flight
        self._open.append(number)
        self._enqueue(flight, arrival.at)

    def _enqueue(self, flight: Flight, now: float, waited_s: float = 0.0, num_moves: int = 0) -> None:
        arrival = flight.arrival
        descriptor = Enqueue(
            *flight.key,
            model=MODEL,
            tenant=arrival.tenant,
            priority=arrival.priority,
            timeout_s=flight.deadline - now,
            num_prompt_tokens=arrival.prompt_tokens + flight.num_emitted,
            max_tokens=flight.max_tokens - flight.num_emitted,
            num_output_tokens=flight.num_emitted,
            block_hashes=flight.identity.block_hashes,
            digest=flight.identity.digest,
            session=arrival.session,
            avoid=flight.avoid,
            waited_s=waited_s,
            num_moves=num_moves,
        )
        self._network.to_shard(flight.shard, flight.gateway, descriptor)

    # What shards say

    def on_router_frame(self, shard: int, frame: FromRouter, now: float) -> None:
        """A grant, a refusal or a move of one of our requests."""
        if not isinstance(frame, Grant | Refuse | Move):
            return
        flight = self._flights.get(frame.request_id)
        if flight is None or flight.attempt != frame.attempt:
            if isinstance(frame, Grant):
                gateway = self._names[int(frame.request_id) % len(self._names)]
                self._network.to_shard(shard, gateway, Withdraw(frame.request_id, frame.attempt))
            return
        match frame:
            case Grant():
                self._granted(flight, frame, now)
            case Refuse():
                self._end(flight, End.LATE if frame.code == "deadline_exceeded" else End.REFUSED, now)
            case Move():
                self.num_moved += 1
                flight.shard = frame.shard
                self._enqueue(flight, now, waited_s=now - flight.arrival.at, num_moves=1)

    def _granted(self, flight: Flight, grant: Grant, now: float) -> None:
        if self._records.granted[flight.number] == NEVER:
            self._records.granted[flight.number] = now
        request = _request(flight.arrival, flight.number, flight.attempt, flight.num_emitted)
        flight.replica_id = grant.replica_id
        if not self._network.to_replica(grant.replica_id, request):
            flight.replica_id = None
            self._network.to_shard(flight.shard, flight.gateway, Withdraw(*flight.key))
            flight.avoid.append(grant.replica_id)
            self._enqueue(flight, now)

    # What replicas say

    def on_chunks(self, chunks: list[TokenChunk], now: float) -> None:
        """Tokens of one step of one replica."""
        for chunk in chunks:
            if chunk.finish is None and chunk.index and not chunk.num_cached_tokens:
                continue
            flight = self._flights.get(chunk.request_id)
            if flight is None or flight.attempt != chunk.attempt:
                continue
            flight.num_cached_tokens = max(flight.num_cached_tokens, chunk.num_cached_tokens)
            if chunk.index == 0:
                self._records.first[flight.number] = now
                self._records.cached_tokens[flight.number] = chunk.num_cached_tokens
            if chunk.finish is not None:
                self._tell_end(flight, Outcome.OK, chunk.index + 1 - flight.num_emitted)
                self._end(flight, End.DONE, now)

    def on_death(self, chunks: list[TokenChunk], now: float) -> None:
        """A replica is gone: each of its requests goes on elsewhere, after the tokens that had come."""
        for chunk in chunks:
            flight = self._flights.get(chunk.request_id)
            if flight is None or flight.attempt != chunk.attempt or flight.replica_id is None:
                continue
            self._tell_end(flight, Outcome.FAILED, chunk.index - flight.num_emitted)
            flight.avoid.append(flight.replica_id)
            flight.replica_id = None
            flight.num_emitted, flight.num_cached_tokens = chunk.index, 0
            flight.attempt += 1
            self._records.num_attempts[flight.number] += 1
            self._enqueue(flight, now)

    def _tell_end(self, flight: Flight, outcome: Outcome, num_output_tokens: int) -> None:
        assert flight.replica_id is not None
        ended = Ended(
            *flight.key,
            MODEL,
            flight.arrival.tenant,
            flight.replica_id,
            outcome,
            num_output_tokens,
            flight.num_cached_tokens,
            finished=outcome is Outcome.OK,
        )
        self._network.to_shard(flight.shard, flight.gateway, ended)

    def _end(self, flight: Flight, end: End, now: float) -> None:
        del self._flights[str(flight.number)]
        self._records.close(flight.number, end, now)

    # Time

    def on_tick(self, now: float) -> None:
        """Cancel what runs past its deadline; what still waits is the router's to refuse."""
        numbers, flights = self._open, self._flights
        while numbers:
            flight = flights.get(str(numbers[0]))
            if flight is not None and flight.deadline > now:
                return
            numbers.popleft()
            if flight is None:
                continue
            if flight.replica_id is not None:
                self._network.cancel(flight.replica_id, str(flight.number))
                self._tell_end(flight, Outcome.NEUTRAL, 0)
            else:
                self._network.to_shard(flight.shard, flight.gateway, Withdraw(*flight.key))
            self._end(flight, End.LATE, now)


def _request(arrival: Arrival, number: int, attempt: int = 0, num_emitted: int = 0) -> GenerateRequest:
    """What the engine gets; the seed tells the null executor how long the answer will be."""
    return GenerateRequest(
        request_id=str(number),
        attempt=attempt,
        prompt_token_ids=prompt_of(arrival, number),
        output_token_ids=[FILLER_TOKEN_ID] * num_emitted,
        sampling=SamplingParams(max_tokens=arrival.max_tokens or arrival.output_tokens, seed=arrival.output_tokens),
        priority=arrival.priority,
        cache_salt=arrival.tenant,
    )
