"""Dispatcher: owns the requests of one gateway from admission to their last token.

A request's prompt stays here until a shard grants a replica, then goes there in one hop; tokens come straight back
into the request's journal (`cluster.streams.flight`). Whatever ends an attempt too early, the request goes on elsewhere
behind its journal, on the same weights: that is all there is to migration. What arrives and the ticks come in as calls;
sockets are behind `Link`; the loop's clock is the only time.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

from cluster.errors import (
    ApiError,
    DeadlineExceeded,
    NoReadyReplica,
    Overloaded,
    PoisonRequest,
    RateLimited,
)
from cluster.frames import (
    Beat,
    Failed,
    FromReplica,
    FromRouter,
    Grant,
    Move,
    Refuse,
    ReplicaDown,
    ReplicaInfo,
    ReplicaUp,
    Submit,
    Tokens,
    Withdraw,
)
from cluster.generation import RequestContext
from cluster.streams.descriptor import identify
from cluster.streams.flight import AttemptEnd, End, Flight
from cluster.streams.link import Link
from cluster.streams.migration import Migration
from cluster.streams.replica_peers import ReplicaPeers, Standing
from cluster.streams.shard_links import ShardLinks
from cluster.streams.watchdog import LivedTime
from engine.config import EngineInfo
from engine.request import GenerateRequest, TokenChunk

_REFUSALS: dict[str, type[ApiError]] = {
    error.code: error for error in (RateLimited, Overloaded, NoReadyReplica, DeadlineExceeded, PoisonRequest)
}


class Dispatcher:
    """Implements `cluster.generation.Generator` over the router shards and their replicas."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._time = LivedTime()
        self._shards = ShardLinks(self._time)
        self._peers = ReplicaPeers(self._time)
        self._flights: dict[str, Flight] = {}
        self._migration = Migration(self._shards, self._peers, self._flights, self._ask)

    @property
    def num_in_flight(self) -> int:
        return len(self._flights)

    def num_waiting(self) -> Counter[str]:
        """By model the requests of calls that wait for a token. Who has only to read is none, nor is a probe."""
        flights = self._flights.values()
        return Counter(it.context.model for it in flights if not it.is_over and it.context.record is not None)

    @property
    def replicas(self) -> dict[str, ReplicaInfo]:
        """Those that some shard announces."""
        return self._peers.announced

    @property
    def live_shards(self) -> set[int]:
        """Shards that are connected and not silent."""
        return self._shards.alive()

    def standing(self, model: str) -> Standing:
        """How its replicas stand."""
        return self._peers.standing(model)

    def model_info(self, model: str) -> EngineInfo | None:
        """Facts of the model's engines; kept while all of its replicas are away, so that requests can wait."""
        return self._peers.facts.get(model)

    async def stream(self, request: GenerateRequest, context: RequestContext) -> AsyncIterator[TokenChunk]:
        """See `Generator`. What `request.output_token_ids` holds is journalled already."""
        loop = asyncio.get_running_loop()
        identity = identify(request, context, self._peers.facts.get(context.model))
        flight = Flight(request, context, loop.time() + context.timeout_s, identity)
        timer = loop.call_at(flight.deadline, flight.expire)
        self._flights[request.request_id] = flight
        self._migration.budget.on_request()
        finished = False
        try:
            if not flight.finish_if_complete(self._peers.facts.get(context.model)):
                self._enqueue(flight)
            while not finished:
                chunk = await flight.next_chunk()
                finished = chunk.finish is not None
                yield chunk
        finally:
            timer.cancel()
            self._forget(flight)

    def _forget(self, flight: Flight) -> None:
        """Free what the request still holds: its place in a queue or its work in a replica."""
        self._flights.pop(flight.request_id, None)
        if flight.shard is not None and flight.replica_id is None:
            self._shards.send(flight.shard, Withdraw(*flight.key))
        self._migration.forget(flight)

    def end_all(self, error: ApiError) -> None:
        """The gateway is to end: whoever still reads is told."""
        for flight in self._flights.values():
            flight.fail(error)

    # From the queue to a replica

    def _ask(self, flight: Flight, at_once: bool) -> None:
        """The flight needs a (next) place."""
        if at_once:
            self._enqueue(flight)
        else:
            self._enqueue_after_pause(flight)

    def _enqueue(self, flight: Flight, shard: int | None = None) -> None:
        """Ask a shard for a place: `shard`, if it is alive, else the one of the request's key."""
        flight.shard = None
        if not self._migration.may_run(flight):
            return
        if shard is None or not self._shards.is_alive(shard):
            homes = self._peers.homes(flight.context.model, flight.weights_revision)
            shard = self._shards.choose(flight.identity.shard_key, homes)
        flight.shard = shard
        if shard is not None:
            now = asyncio.get_running_loop().time()
            self._shards.send(shard, flight.descriptor(now, self._peers.unusable()))

    def _enqueue_again(self, flight: Flight) -> None:
        """Out of the queue where it waits, into the one that is now the right one."""
        self._shards.send(flight.shard, Withdraw(*flight.key))
        self._enqueue(flight)

    def _enqueue_after_pause(self, flight: Flight) -> None:
        flight.shard = None
        asyncio.get_running_loop().call_later(flight.pause(), self._enqueue_if_held, flight)

    def _enqueue_if_held(self, flight: Flight) -> None:
        if flight.is_waiting and flight.shard is None and self._flights.get(flight.request_id) is flight:
            self._enqueue(flight)

    def _enqueue_those_at(self, shard: int | None) -> None:
        """Whoever waits there asks again, at the shard that is now theirs."""
        for flight in list(self._flights.values()):
            if flight.is_waiting and flight.shard == shard:
                self._enqueue_again(flight)

    def _bring_home(self) -> None:
        """Whoever waits where no replica can take it asks where one can."""
        alive = self._shards.alive()
        for flight in list(self._flights.values()):
            if flight.is_waiting and flight.shard is not None:
                homes = self._peers.homes(flight.context.model, flight.weights_revision)
                if flight.shard not in homes and not alive.isdisjoint(homes):
                    self._enqueue_again(flight)

    def _granted(self, shard: int, grant: Grant) -> None:
        flight = self._flights.get(grant.request_id)
        peer = self._peers.usable(grant.replica_id)
        if flight is None or flight.key != (grant.request_id, grant.attempt) or not flight.is_waiting:
            self._shards.send(shard, Withdraw(grant.request_id, grant.attempt))
            return
        if flight.shard != shard:
            self._shards.send(flight.shard, Withdraw(*flight.key))
        info = self._peers.announced.get(grant.replica_id)
        revision = "" if info is None else info.engine.weights_revision
        if peer is None or info is None or flight.weights_revision not in ("", revision):
            self._shards.send(shard, Withdraw(*flight.key))
            self._enqueue_after_pause(flight)
            return
        flight.shard = shard
        peer.begin(flight)
        peer.link.send(Submit(flight.submitted(grant, revision)))

    def _moved(self, shard: int, move: Move) -> None:
        flight = self._flights.get(move.request_id)
        if flight is None or flight.key != (move.request_id, move.attempt):
            return
        if flight.is_waiting and flight.shard == shard:
            flight.num_moves += 1
            self._enqueue(flight, move.shard)

    def _refused(self, shard: int, refusal: Refuse) -> None:
        flight = self._flights.get(refusal.request_id)
        if flight is None or flight.key != (refusal.request_id, refusal.attempt):
            return
        if flight.is_waiting and flight.shard == shard:
            flight.shard = None
            kind = _REFUSALS.get(refusal.code, Overloaded)
            flight.fail(kind(refusal.message, None, refusal.retry_after_s))

    # What the shards say

    def on_router(self, shard: int, link: Link) -> None:
        """A shard is there (again): it is told what waits for it, and tells all its replicas."""
        self._shards.connect(shard, link)
        self._enqueue_those_at(shard)
        self._enqueue_those_at(None)

    def on_router_lost(self, shard: int) -> None:
        """What waited there asks elsewhere at once."""
        self._shards.disconnect(shard)
        self._peers.retract_all(shard)
        self._enqueue_those_at(shard)

    def on_router_frame(self, shard: int, frame: FromRouter) -> None:
        if self._shards.heard(shard, frame):
            self._enqueue_those_at(None)
            self._bring_home()
        match frame:
            case Grant():
                self._granted(shard, frame)
            case Refuse():
                self._refused(shard, frame)
            case Move():
                self._moved(shard, frame)
            case ReplicaUp():
                if self._peers.announce(shard, frame.replica):
                    self._bring_home()
            case ReplicaDown():
                if self._peers.retract(shard, frame.replica_id):
                    self._bring_home()

    # What the replicas say

    def on_replica(self, replica_id: str, link: Link) -> None:
        """A connection to a replica is open. One that was open before is lost with all that ran there."""
        self.on_replica_lost(replica_id)
        self._peers.connect(replica_id, link)
        self._now_usable(replica_id)

    def on_replica_frame(self, replica_id: str, frame: FromReplica) -> None:
        peer = self._peers.connected.get(replica_id)
        if peer is None:
            return
        peer.watch.heard()
        match frame:
            case Tokens():
                self._on_tokens(frame)
            case Failed():
                flight = self._flights.get(frame.request_id)
                if flight is not None and flight.key == (frame.request_id, frame.attempt) and flight.replica_id:
                    end = End.REFUSED if frame.retryable else End.UNFIT
                    self._migration.ended([(flight, AttemptEnd(end, frame.message))])
            case Beat():
                if peer.watch.on_beat(frame) and peer.is_left:
                    self._peers.set_left(peer, False)
                    self._now_usable(replica_id)

    def _on_tokens(self, frame: Tokens) -> None:
        flights = self._flights
        ends: list[tuple[Flight, AttemptEnd]] = []
        for chunk in frame.chunks:
            flight = flights.get(chunk.request_id)
            if flight is None:
                continue
            end = flight.accept(chunk)
            if flight.is_tried and flight.num_emitted:
                self._migration.cleared(flight)
            if end is not None:
                ends.append((flight, end))
        if ends:
            self._migration.ended(ends)

    def on_replica_lost(self, replica_id: str) -> None:
        """The connection is gone; what ran there goes on elsewhere."""
        how = AttemptEnd(End.DIED, "the replica that computed it was lost")
        self._migration.ended([(flight, how) for flight in self._peers.disconnect(replica_id)])

    def _now_usable(self, replica_id: str) -> None:
        """It is (again) to be had, also for those that it failed by being away; who waits is told so."""
        for flight in list(self._flights.values()):
            if replica_id in flight.avoided or replica_id in flight.avoid:
                flight.avoid = [other for other in flight.avoid if other != replica_id]
                if flight.is_waiting:
                    self._enqueue_again(flight)

    def on_tick(self, now: float) -> None:
        """Look after those that owe a sign of life. Call every `watchdog.TICK_S`, with any steady clock."""
        self._time.tick(now)
        for shard in self._shards.newly_silent():
            self._enqueue_those_at(shard)
        for _, why, peer in self._peers.accused():
            self._peers.set_left(peer, True)
            end = End.SILENT if peer.watch.is_silent else End.DIED
            how = AttemptEnd(end, f"the replica that computed it {why}")
            self._migration.ended([(flight, how) for flight in list(peer.flights.values())])
        self._peers.close_hopeless()
