"""ModelPool: one model's queue and fleet in a router shard, and the decision: who goes where, now.

A request whose turn has come and that fits nowhere is held (`cluster.router.held`): the roomiest replica it may use is
reserved for it, and the queue goes on with the other replicas. So large requests do not starve, small ones do not wait
behind them, and on an empty replica everything fits.
"""

from collections import Counter
from typing import Any

from cluster.config import RouterConfig
from cluster.frames import Ended, Enqueue, FromRouter, Grant, Move, Refuse, ReplicaInfo, Report, Spare
from cluster.router.condemned import Condemned
from cluster.router.drain_rate import DrainRate, retry_after_s
from cluster.router.held import Held
from cluster.router.ledger import Ledger
from cluster.router.queue_shard import QueueShard
from cluster.router.refusals import refuse, refuse_poison, refuse_share
from cluster.router.request_cost import OutputLengths, price
from cluster.router.running_shares import RunningShares
from cluster.router.waiting import AVOID_S, Key, Waiting
from cluster.routing.fleet import Fleet
from cluster.routing.policy import RoutingPolicy
from cluster.routing.replica_state import ReplicaState

Outbox = list[tuple[str, FromRouter]]  #: (gateway name, message)
MAX_MOVES = 3  #: of one request from shard to shard


class ModelPool:
    """Methods that may make room or add work return the messages that follow."""

    def __init__(self, model: str, config: RouterConfig, policy: RoutingPolicy, condemned: Condemned) -> None:
        self.model = model
        self.queue = QueueShard(config)
        self.fleet = Fleet(config)
        self.lengths = OutputLengths()
        self.shares = RunningShares(config.tenants)
        self.ledger = Ledger(self.lengths, self.shares)
        self.drain_rate = DrainRate()
        self.num_granted = self.num_migrations = self.num_moved = 0
        self.num_refused: Counter[str] = Counter()  #: by the error's code
        self.num_recomputed_tokens = 0  #: by replicas after preemption, those that are gone included
        self._config = config
        self._policy = policy
        self._condemned = condemned
        self._held = Held(self.fleet)

    # Requests

    def enqueue(self, gateway: str, asked: Enqueue, now: float) -> Outbox:
        if self.queue.get((asked.request_id, asked.attempt)) is not None:
            return []
        entry = self._entry(gateway, asked, now)
        self.shares.asked(asked.tenant, now)
        refusal = self._refusal(entry, now)
        if refusal is not None:
            return [(gateway, self._counted(refusal))]
        self._pass_time(now)
        self.fleet.take_back(entry.key)  # asked again: the grant was lost on its way
        outbox = self._push_out(entry, now) if entry.may_be_refused else []
        self.queue.push(entry)
        return outbox + self.dispatch(now)

    def _entry(self, gateway: str, asked: Enqueue, now: float) -> Waiting:
        self.lengths.note(asked.max_tokens)
        num_new = self.lengths.expect(asked.tenant, asked.num_output_tokens, asked.max_tokens)
        cached = 0
        if asked.block_hashes and self.fleet.replicas:
            known = self.fleet.prefixes.num_known(asked.block_hashes) * self._block_size
            cached = min(known, asked.num_prompt_tokens - 1)
        return Waiting(
            asked,
            gateway,
            since=now - asked.waited_s,
            deadline=now + asked.timeout_s,
            cost=price(asked.num_prompt_tokens, cached, num_new),
            num_cached_tokens=cached,
            num_new_tokens=num_new,
            avoid_until=now + AVOID_S,
        )

    def _refusal(self, entry: Waiting, now: float) -> Refuse | None:
        """Why this request may not even wait. Migrations and those that were let in before may always."""
        asked = entry.descriptor
        if self._condemned.holds(asked.digest, now):
            return refuse_poison(asked)
        if not entry.may_be_refused:
            return None
        wait_s = self.drain_rate.wait_s(self.queue.cost_ahead(asked))
        after_s = retry_after_s(wait_s, asked.request_id)
        shares = self.queue.shares
        why = ""
        if shares.has_right(asked):
            pass
        elif shares.is_full(asked):
            why = f"the queue of {self.model!r} is full; try again later"
        elif shares.is_over_share(asked) and shares.has_others(asked.tenant):
            return refuse_share(asked, after_s)
        elif shares.is_over_share(asked):
            why = f"the queue of {self.model!r} is nearly full; try again later"
        if not why and self.fleet.has_live and wait_s is not None and wait_s > asked.timeout_s:
            why = f"the wait would be about {wait_s:.3g} s, the request's time is {asked.timeout_s:.3g} s"
        return refuse(asked, "server_is_overloaded", why, after_s) if why else None

    def _push_out(self, entry: Waiting, now: float) -> Outbox:
        """Make room for a tenant within its share of a full queue."""
        asked = entry.descriptor
        outbox: Outbox = []
        while self.queue.shares.is_full(asked) and (last := self.queue.shares.to_push_out(asked)) is not None:
            wait_s = self.drain_rate.wait_s(self.queue.cost_ahead(last.descriptor))
            self._forget(last.key)
            after_s = retry_after_s(wait_s, last.descriptor.request_id)
            outbox.append((last.gateway, self._counted(refuse_share(last.descriptor, after_s))))
        return outbox

    def _counted(self, refusal: Refuse) -> Refuse:
        self.num_refused[refusal.code] += 1
        return refusal

    def withdraw(self, key: Key, now: float) -> Outbox | None:
        """Out of the queue, or an unused grant comes back; None if the request is not here."""
        self._pass_time(now)
        if self._forget(key) is not None:
            return self.dispatch(now)
        if not self.fleet.take_back(key):
            return None
        self._give_back(key[0])
        return self.dispatch(now)

    def gateway_lost(self, gateway: str) -> None:
        """Forget what it waits for; its unused grants return when their lease ends."""
        for key in self.queue.of_gateway(gateway):
            self._forget(key)

    def _forget(self, key: Key) -> Waiting | None:
        """Take a request out of the queue without its having run."""
        entry = self.queue.remove(key)
        if entry is not None:
            self._held.let_go(entry)
            if entry.had_turn:
                self._give_back(key[0])
        return entry

    def _give_back(self, request_id: str) -> None:
        charge = self.ledger.cancel(request_id)
        if charge is not None:
            self.queue.adjust(charge.priority, charge.tenant, -charge.cost)

    def ended(self, ended: Ended, now: float) -> Outbox:
        """An attempt is over: its breaker, what it cost, and what it teaches."""
        self._pass_time(now)
        key = (ended.request_id, ended.attempt)
        settled = self.ledger.settle(ended)
        if settled is not None:
            charge, more = settled
            self.queue.adjust(charge.priority, charge.tenant, more)
        self.fleet.record(ended.replica_id, key, ended.outcome, now)
        replica = self.fleet.replicas.get(ended.replica_id)
        if replica is not None and not self.fleet.breakers.allows(ended.replica_id):
            self._held.release(replica)
        return self.dispatch(now)

    # Replicas

    def announce(self, info: ReplicaInfo, now: float) -> None:
        if not self.fleet.has_live:
            self.drain_rate.forget()  # what waits has waited for somebody to come, not for its turn
        self._held.release(self.fleet.add(info, now))

    def report(self, replica_id: str, report: Report, now: float) -> Outbox:
        replica = self.fleet.replicas.get(replica_id)
        if replica is None:
            return []
        self._pass_time(now)
        before = 0 if replica.load is None else replica.load.num_recomputed_tokens
        self.num_recomputed_tokens += max(0, report.load.num_recomputed_tokens - before)
        self.fleet.report(replica, report, self.lengths.ratio, now)
        outbox: Outbox = []
        entry = replica.reserved_for
        if entry is not None and replica.fits(entry):
            self._grant(entry, replica, now, outbox)
        return outbox + self.dispatch(now) if len(self.queue) else outbox

    def replica_lost(self, replica_id: str) -> bool:
        """Whether it was known."""
        replica = self.fleet.remove(replica_id)
        self._held.release(replica)
        return replica is not None

    def drain(self, replica_id: str, comes_back: bool = False) -> bool:
        """No more grants to it; whether it is known."""
        replica = self.fleet.replicas.get(replica_id)
        if replica is None:
            return False
        replica.is_draining, replica.comes_back = True, comes_back
        self._held.release(replica)
        self.fleet.refresh(replica)
        return True

    # Time

    def tick(self, now: float) -> Outbox:
        """Leases, backoffs and deadlines; reservations are thought over."""
        self._pass_time(now)
        self.ledger.expire(now)
        self.shares.pass_time(now)
        self.fleet.pass_time(now)
        self._held.reconsider()
        return self.dispatch(now)

    def _pass_time(self, now: float) -> None:
        """The drain rate is of time with a backlog and somebody to work on it. Who is parked is no backlog."""
        has_backlog = self.queue.peek() is not None or self._held.num_reserved > 0
        self.drain_rate.pass_time(has_backlog and self.fleet.has_live, now)

    # The decision

    def dispatch(self, now: float) -> Outbox:
        """Give turns while some replica has credit."""
        outbox: Outbox = []
        self._refuse_expired(now, outbox)
        self.fleet.close_silent(now)
        if self._held.has_parked:
            for revision in ["", *self.fleet.cohorts]:
                self._look_at_parked(revision, now, outbox)
        while self.fleet.has_open and (entry := self._next()) is not None:
            self.queue.take_turn(entry, self.ledger.open(entry))
            if self._condemned.holds(entry.descriptor.digest, now):
                self._forget(entry.key)
                outbox.append((entry.gateway, self._counted(refuse_poison(entry.descriptor))))
            elif not self._place(entry, now, outbox):
                self._held.park(entry)
        return outbox

    def _next(self) -> Waiting | None:
        """Whose turn it is, of those that need not leave what is free to others."""
        slots, blocks = self.fleet.spare
        tokens = blocks * self._block_size
        waiting = self.queue.shares
        return self.queue.peek_past(
            lambda tenant: self.shares.must_leave(
                tenant, slots, tokens, waiting.num_requests_of(tenant), waiting.num_requests
            )
        )

    @property
    def _block_size(self) -> int:
        return next(iter(self.fleet.replicas.values())).info.engine.block_size

    def _look_at_parked(self, revision: str, now: float, outbox: Outbox) -> None:
        while self.fleet.has_open and (entry := self._held.first_parked(revision)) is not None:
            if not self._place(entry, now, outbox):
                return

    def _place(self, entry: Waiting, now: float, outbox: Outbox) -> bool:
        """Grant, or reserve a replica; False if no open replica is allowed."""
        chosen = self._policy.choose(entry, self.fleet, now)
        if chosen is not None:
            self._grant(entry, chosen, now, outbox)
            return True
        roomiest = self.fleet.roomiest(entry, now)
        if roomiest is None:
            return False
        self._held.reserve(entry, roomiest)
        return True

    def _grant(self, entry: Waiting, replica: ReplicaState, now: float, outbox: Outbox) -> None:
        self._held.let_go(entry)
        self.queue.remove(entry.key)
        self.drain_rate.note(entry.cost)
        self.fleet.grant(entry, replica, now)
        self.num_granted += 1
        self.num_migrations += entry.is_migration
        outbox.append((entry.gateway, Grant(*entry.key, replica.replica_id, self._config.lease_s, now - entry.since)))

    def _refuse_expired(self, now: float, outbox: Outbox) -> None:
        for entry in self.queue.expire(now):
            self._held.let_go(entry)
            if entry.had_turn:
                self._give_back(entry.descriptor.request_id)
            outbox.append((entry.gateway, self._counted(self._expired(entry.descriptor))))

    def _expired(self, asked: Enqueue) -> Refuse:
        if not self.fleet.replicas:
            message = f"no replica of {self.model!r} became ready in time"
            return refuse(asked, "no_ready_replica", message, retry_after_s(None, asked.request_id))
        message = f"the request waited {asked.timeout_s:.3g} s in the queue without its turn"
        wait_s = self.drain_rate.wait_s(self.queue.cost)
        return refuse(asked, "deadline_exceeded", message, retry_after_s(wait_s, asked.request_id))

    # Other shards

    def spare(self, shard: int, num_shards: int) -> Spare | None:
        """What each other shard may send here, when nothing waits here and some replica has credit."""
        slots, blocks = self.fleet.spare
        if self.queue.peek() is not None or self._held.num_reserved or not slots or num_shards < 2:
            return None
        peers = num_shards - 1
        return Spare(shard, self.model, -(-slots // peers), blocks * self._block_size // peers)

    def move(self, spare: Spare, now: float) -> Outbox:
        """Send requests to a shard with room: those that no replica here may take, and while there is no room here,
        those whose turn it is."""
        outbox: Outbox = []
        slots, tokens = spare.num_slots, spare.num_tokens
        self._pass_time(now)
        self.fleet.close_silent(now)
        for stuck in list(self._held.parked()):
            wanted = stuck.descriptor.num_prompt_tokens + stuck.num_new_tokens
            is_fit = slots > 0 and wanted <= tokens and stuck.descriptor.num_moves < MAX_MOVES
            if is_fit and self._may_leave(stuck, now):
                slots, tokens = slots - 1, tokens - wanted
                self._forget(stuck.key)
                self.num_moved += 1
                outbox.append((stuck.gateway, Move(*stuck.key, spare.shard)))
        while slots and (entry := self._next_elsewhere()) is not None:
            tokens -= entry.descriptor.num_prompt_tokens + entry.num_new_tokens
            if tokens < 0 or entry.descriptor.num_moves >= MAX_MOVES or not self._may_leave(entry, now):
                break
            slots -= 1
            self.queue.take_turn(entry, entry.cost)  # it is served, though elsewhere
            self.queue.remove(entry.key)
            self.num_moved += 1
            outbox.append((entry.gateway, Move(*entry.key, spare.shard)))
        return outbox

    def _next_elsewhere(self) -> Waiting | None:
        """Whose turn it is while nobody may have what is free here."""
        if self.fleet.has_open and self._next() is not None:
            return None
        return self.queue.peek()

    def _may_leave(self, entry: Waiting, now: float) -> bool:
        """A stream that must go on on weights stays where a replica with them will take it."""
        revision = entry.descriptor.weights_revision
        return not revision or not any(
            replica.info.engine.weights_revision == revision and not entry.avoids(replica.replica_id, now)
            for replica in self.fleet.admitting()
        )

    def status(self) -> dict[str, Any]:
        """Counts, as plain values."""
        return {
            "requests": len(self.queue),
            "tokens": self.queue.shares.num_tokens,
            "tenants": self.queue.shares.tenants(),
            "running": self.shares.held(),
            "drain_cost_per_s": self.drain_rate.per_s,
            "moved": self.num_moved,
            "migrations": self.num_migrations,
            "reserved": self._held.num_reserved,
            "output_ratio": self.lengths.ratio,
            "recomputed_tokens": self.num_recomputed_tokens,
            "lost_tokens": self.ledger.num_lost_tokens,
        }

    def check_invariants(self) -> None:
        self.queue.check_invariants()
        self.fleet.check_invariants()
        self.ledger.check_invariants()
        self._held.check_invariants(len(self.queue) - sum(self.queue.num_in_bands.values()))
