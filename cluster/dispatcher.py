"""Dispatcher: owns the requests of one gateway from admission to their last token.

A request's prompt stays here until the shard grants a replica, then goes there in one hop; tokens come straight back.
Every chunk is checked against the journal: another attempt's chunk is dropped (fencing), an index already seen is
dropped, a gap is a failure. Sockets are behind `Link`; the loop's clock is the only time.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol

from cluster.errors import ApiError, DeadlineExceeded, EngineFailed, NoReadyReplica, Overloaded
from cluster.frames import (
    Cancel,
    Enqueue,
    Failed,
    Frame,
    FromReplica,
    FromRouter,
    Grant,
    Refuse,
    ReplicaDown,
    ReplicaInfo,
    ReplicaUp,
    Submit,
    Tokens,
    Withdraw,
)
from cluster.generation import RequestContext
from engine.config import EngineInfo
from engine.request import FinishReason, GenerateRequest, TokenChunk

_REFUSALS: dict[str, type[ApiError]] = {error.code: error for error in (Overloaded, NoReadyReplica, DeadlineExceeded)}


class Link(Protocol):
    """The sending half of a connection; what is sent on a closed one is dropped (the loss is told otherwise)."""

    @property
    def is_open(self) -> bool: ...

    def send(self, frame: Frame) -> None: ...


class Flight:
    """One request in this gateway: where it stands, what was emitted, and who reads."""

    __slots__ = ("_chunks", "_error", "_waiter", "context", "deadline", "journal", "replica_id", "request")

    def __init__(self, request: GenerateRequest, context: RequestContext, deadline: float) -> None:
        self.request, self.context, self.deadline = request, context, deadline
        self.journal: list[int] = list(request.output_token_ids)
        self.replica_id: str | None = None  #: granted or running there
        self._chunks: deque[TokenChunk] = deque()
        self._error: ApiError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def key(self) -> tuple[str, int]:
        return (self.request.request_id, self.request.attempt)

    def accept(self, chunk: TokenChunk) -> None:
        """Take a chunk of the running attempt into the journal, or drop it, or fail the flight."""
        if chunk.attempt != self.request.attempt or chunk.index < len(self.journal):
            return
        if chunk.index > len(self.journal):
            self.fail(EngineFailed(f"tokens {len(self.journal)} to {chunk.index - 1} of the stream were lost"))
            return
        if chunk.finish is FinishReason.ERROR:
            self.fail(EngineFailed(chunk.error or "the engine gave up on this request"))
            return
        self.journal += chunk.token_ids
        self._chunks.append(chunk)
        self._wake()

    def fail(self, error: ApiError) -> None:
        if self._error is None:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next_chunk(self) -> TokenChunk:
        """The next chunk; raises what the flight failed with."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._chunks.popleft()

    def expire(self) -> None:
        """The deadline has come."""
        self.fail(DeadlineExceeded(f"the request did not finish within {self.context.timeout_s:.3g} s"))


class Dispatcher:
    """Implements `cluster.generation.Generator` over a router shard and its replicas."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.replicas: dict[str, ReplicaInfo] = {}
        self._flights: dict[str, Flight] = {}
        self._router: Link | None = None
        self._links: dict[str, Link] = {}
        self._known: dict[str, EngineInfo] = {}

    @property
    def num_in_flight(self) -> int:
        return len(self._flights)

    def model_info(self, model: str) -> EngineInfo | None:
        """Facts of the model's engines; kept while all of its replicas are away, so that requests can wait."""
        return self._known.get(model)

    async def stream(self, request: GenerateRequest, context: RequestContext) -> AsyncIterator[TokenChunk]:
        loop = asyncio.get_running_loop()
        flight = Flight(request, context, loop.time() + context.timeout_s)
        timer = loop.call_at(flight.deadline, flight.expire)
        self._flights[request.request_id] = flight
        finished = False
        try:
            self._enqueue(flight)
            while not finished:
                chunk = await flight.next_chunk()
                finished = chunk.finish is not None
                yield chunk
        finally:
            timer.cancel()
            self._flights.pop(request.request_id, None)
            if not finished:
                self._abandon(flight)

    # What this gateway says

    def _enqueue(self, flight: Flight) -> None:
        request, left_s = flight.request, flight.deadline - asyncio.get_running_loop().time()
        descriptor = Enqueue(
            request.request_id,
            request.attempt,
            flight.context.model,
            flight.context.tenant,
            request.priority,
            left_s,
            request.num_tokens,
            request.sampling.max_tokens,
        )
        if self._router is not None:
            self._router.send(descriptor)

    def _abandon(self, flight: Flight) -> None:
        """Free what the request holds: its place in the queue or its work in the replica."""
        link = self._links.get(flight.replica_id) if flight.replica_id is not None else None
        if link is not None:
            link.send(Cancel(*flight.key))
        elif flight.replica_id is None and self._router is not None:
            self._router.send(Withdraw(*flight.key))

    # What this gateway hears

    def on_router(self, router: Link) -> None:
        """The router is there (again): repeat what waits; it will tell all its replicas."""
        self._router = router
        for flight in self._flights.values():
            if flight.replica_id is None:
                self._enqueue(flight)

    def on_router_lost(self) -> None:
        self._router = None

    def on_router_frame(self, frame: FromRouter) -> None:
        match frame:
            case Grant():
                self._granted(frame)
            case Refuse():
                flight = self._current(frame.request_id, frame.attempt)
                if flight is not None:
                    kind = _REFUSALS.get(frame.code, Overloaded)
                    flight.fail(kind(frame.message, None, frame.retry_after_s))
            case ReplicaUp():
                self.replicas[frame.replica.replica_id] = frame.replica
                self._known[frame.replica.model] = frame.replica.engine
            case ReplicaDown():
                self.replicas.pop(frame.replica_id, None)

    def _granted(self, grant: Grant) -> None:
        flight = self._current(grant.request_id, grant.attempt)
        link = self._links.get(grant.replica_id)
        if flight is None or flight.replica_id is not None or link is None or not link.is_open:
            if self._router is not None:
                self._router.send(Withdraw(grant.request_id, grant.attempt))
            if flight is not None and flight.replica_id is None:
                asyncio.get_running_loop().call_later(0.05, self._enqueue_again, flight)
            return
        flight.replica_id = grant.replica_id
        link.send(Submit(flight.request))

    def _enqueue_again(self, flight: Flight) -> None:
        """The granted replica is not connected to this gateway (yet): ask once more."""
        if self._flights.get(flight.request.request_id) is flight and flight.replica_id is None:
            self._enqueue(flight)

    def on_replica(self, replica_id: str, link: Link) -> None:
        """A connection to a replica is open."""
        self._links[replica_id] = link

    def on_replica_frame(self, frame: FromReplica) -> None:
        match frame:
            case Tokens():
                flights = self._flights
                for chunk in frame.chunks:
                    flight = flights.get(chunk.request_id)
                    if flight is not None:
                        flight.accept(chunk)
            case Failed():
                flight = self._current(frame.request_id, frame.attempt)
                if flight is not None:
                    flight.fail(EngineFailed(frame.message))

    def on_replica_lost(self, replica_id: str) -> None:
        """The connection is gone, and with it every request that ran there."""
        self._links.pop(replica_id, None)
        self.replicas.pop(replica_id, None)
        for flight in self._flights.values():
            if flight.replica_id == replica_id:
                flight.fail(EngineFailed("the replica that computed this request was lost"))

    def _current(self, request_id: str, attempt: int) -> Flight | None:
        flight = self._flights.get(request_id)
        return flight if flight is not None and flight.request.attempt == attempt else None
