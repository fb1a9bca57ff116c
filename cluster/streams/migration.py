"""Migration: what becomes of a request whose attempt is over: it goes on elsewhere behind its journal, or fails.

A death of a replica is not its requests' fault and costs them nothing, but for the one that causes deaths
(`cluster.streams.poison_rule`). What fails by itself is tried once more, under a budget.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from cluster.errors import EngineFailed, PoisonRequest
from cluster.frames import Cancel, Condemn, Ended
from cluster.streams.flight import OUTCOMES, AttemptEnd, End, Flight
from cluster.streams.poison_rule import DEATH, SILENCE, PoisonRule
from cluster.streams.replica_peers import ReplicaPeers
from cluster.streams.retry_budget import RetryBudget
from cluster.streams.shard_links import ShardLinks

logger = logging.getLogger("manta.migration")


class Migration:
    """Ends attempts of `flights`, and asks for the next by `ask(flight, at_once)`."""

    def __init__(
        self,
        shards: ShardLinks,
        peers: ReplicaPeers,
        flights: dict[str, Flight],
        ask: Callable[[Flight, bool], None],
    ) -> None:
        self._shards, self._peers, self._flights, self._ask = shards, peers, flights, ask
        self._poison = PoisonRule()
        self.budget = RetryBudget(0.0)

    def may_run(self, flight: Flight) -> bool:
        """False while it waits to be tried alone."""
        return self._poison.may_run(flight.request_id)

    def cleared(self, flight: Flight) -> None:
        """A suspect has given a token."""
        flight.is_tried = False
        self._poison.forget(flight.request_id)
        self._try_suspects()

    def forget(self, flight: Flight) -> None:
        """Its reader is done with it; what still runs is not wanted."""
        if flight.replica_id is not None:
            self._end_attempt(flight, AttemptEnd(End.ABANDONED), finished=True)
        self._poison.forget(flight.request_id)
        self._try_suspects()

    def ended(self, ends: Iterable[tuple[Flight, AttemptEnd]]) -> None:
        """What one event has ended: those that died with a replica are judged together."""
        dead = []
        for flight, how in ends:
            if how.end in (End.DIED, End.SILENT):
                dead.append((flight, how))
            else:
                self._ended_alone(flight, how)
        if dead:
            self._died(dead)

    def _end_attempt(self, flight: Flight, how: AttemptEnd, finished: bool = False) -> None:
        """The replica and the shard that granted it are told; nothing that is still said of this attempt counts."""
        assert flight.replica_id is not None
        context, (request_id, attempt) = flight.context, flight.key
        ended = Ended(
            request_id,
            attempt,
            context.model,
            context.tenant,
            flight.replica_id,
            OUTCOMES[how.end],
            flight.num_emitted,
            flight.num_cached_tokens,
            finished,
        )
        self._shards.send(flight.shard, ended)
        self._peers.end(flight, None if how.end is End.FINISHED else Cancel(request_id, attempt))
        flight.left_replica(how.why)

    def _ended_alone(self, flight: Flight, how: AttemptEnd) -> None:
        replica_id = flight.replica_id
        assert replica_id is not None
        self._end_attempt(flight, how, finished=how.end in (End.FINISHED, End.UNFIT))
        if flight.is_over or how.end is End.FINISHED:
            return
        if how.end is End.UNFIT:
            flight.fail(EngineFailed(how.why))
            return
        flight.shun(replica_id)
        if how.end is End.FAULTY and not self._may_retry(flight):
            flight.fail(EngineFailed(how.why))
            return
        self._migrate(flight, at_once=how.end is not End.REFUSED)

    def _may_retry(self, flight: Flight) -> bool:
        """A request that fails by itself is tried once elsewhere, if there is an elsewhere, and under the budget."""
        flight.num_faults += 1
        if flight.num_faults > 1 or not self._peers.others(flight.context.model, flight.avoid, flight.weights_revision):
            return False
        return self.budget.spend(asyncio.get_running_loop().time())

    def _died(self, dead: list[tuple[Flight, AttemptEnd]]) -> None:
        """Requests whose replica died under them."""
        weight = SILENCE if all(how.end is End.SILENT for _, how in dead) else DEATH
        victims = ((flight.request_id, flight.num_emitted > 0) for flight, _ in dead if not flight.is_over)
        condemned = self._poison.on_death(victims, weight)
        for flight, how in dead:
            replica_id = flight.replica_id
            assert replica_id is not None
            is_condemned = flight.request_id == condemned
            self._end_attempt(flight, how, finished=is_condemned)
            if flight.is_over:
                continue
            if is_condemned:
                self._shards.send_all(Condemn(flight.identity.digest))
                logger.error("request %s has ended two replicas: %s", flight.request_id, how.why)
                flight.fail(
                    PoisonRequest("this request has ended the replicas that computed it; it is not tried again")
                )
                continue
            flight.shun(replica_id)
            flight.is_tried = False
            self._migrate(flight)
        self._try_suspects()

    def _migrate(self, flight: Flight, at_once: bool = True) -> None:
        """Go on elsewhere."""
        if flight.finish_if_complete(self._peers.facts.get(flight.context.model)):
            return
        flight.next_attempt()
        self._ask(flight, at_once)

    def _try_suspects(self) -> None:
        """Let the next one run that may have killed its replica, if none does."""
        suspect = self._poison.next_trial()
        flight = None if suspect is None else self._flights.get(suspect)
        if flight is not None:
            flight.is_tried = True
            self._ask(flight, True)
