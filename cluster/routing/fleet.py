"""Fleet: the replicas of one model, ordered so that a choice never looks at all of them.

A replica is *open* while it may be granted something: it has a free slot, reports, does not drain, its breaker allows
it and it is not reserved. Open replicas stand in rankings, one set for each weights revision; every event about a
replica updates its places in O(log n). Owns the leases of grants and the prefix index; knows no queue.
"""

from collections import OrderedDict
from collections.abc import Iterator
from random import Random

from cluster.config import RouterConfig
from cluster.frames import Outcome, ReplicaInfo, Report
from cluster.router.circuit_breaker import CircuitBreakers
from cluster.router.waiting import Key, Waiting
from cluster.routing.hash_ring import HashRing
from cluster.routing.prefix_index import PrefixIndex
from cluster.routing.ranking import Ranking
from cluster.routing.replica_state import ReplicaState

LOOKS = 8  #: replicas looked at in one order before the roomiest is taken
STALE_SHARE = 0.3  #: of `report_timeout_s`: a report older than this is a stale view


class Cohort:
    """The open replicas of one weights revision."""

    def __init__(self) -> None:
        self.by_work = Ranking()
        self.by_room = Ranking()  #: most free blocks first
        self.by_turn = Ranking()  #: longest without a grant first
        self.num_replicas = 0  #: open or not

    def place(self, replica: ReplicaState) -> None:
        self.by_work.place(replica, replica.work_tokens)
        self.by_room.place(replica, -replica.credit_blocks)
        self.by_turn.place(replica, replica.last_turn)

    def drop(self, replica: ReplicaState) -> None:
        for ranking in (self.by_work, self.by_room, self.by_turn):
            ranking.drop(replica)


class Fleet:
    """All replicas of a model that this shard was told of."""

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self.replicas: dict[str, ReplicaState] = {}
        self.leases: dict[Key, ReplicaState] = {}  # oldest grant first
        self.lapsed: dict[str, float] = {}  # by gateway: when the last grant that it has not used was made
        self.prefixes = PrefixIndex()
        self.breakers = CircuitBreakers()
        self.cohorts: dict[str, Cohort] = {}  # by weights revision
        self.num_sequences = 0  #: running, waiting and granted, over all replicas
        self._open: dict[str, tuple[int, int]] = {}  # what each open replica counts in `spare`: slots, blocks
        self._spare = (0, 0)
        self._heard: OrderedDict[str, None] = OrderedDict()  # not silent, longest unheard first
        self._counted: dict[str, int] = {}  # sequences
        self._ring: HashRing | None = None
        self._num_turns = 0
        self._num_announced = 0

    @property
    def has_open(self) -> bool:
        return bool(self._open)

    @property
    def has_live(self) -> bool:
        """Some replica reports."""
        return bool(self._heard)

    def admitting(self) -> Iterator[ReplicaState]:
        """Those that report and will take requests again when they have room."""
        return (self.replicas[name] for name in self._heard if not self.replicas[name].is_draining)

    @property
    def spare(self) -> tuple[int, int]:
        """Slots and KV blocks free for new requests, over all open replicas."""
        return self._spare

    @property
    def ring(self) -> HashRing:
        """The replicas on a hash ring; kept from its first use on."""
        if self._ring is None:
            self._ring = HashRing(self.replicas.values())
        return self._ring

    # Events

    def add(self, info: ReplicaInfo, now: float) -> ReplicaState | None:
        """A replica announced itself, perhaps again. Returns what it was before, already taken out."""
        old = self.remove(info.replica_id)
        self._num_announced += 1
        replica = ReplicaState(info, self._num_announced, now)
        self.replicas[info.replica_id] = replica
        self.cohorts.setdefault(info.engine.weights_revision, Cohort()).num_replicas += 1
        self.breakers.add(info.replica_id)
        self._heard[info.replica_id] = None
        if self._ring is not None:
            self._ring.add(replica)
        return old

    def remove(self, replica_id: str) -> ReplicaState | None:
        """The replica is gone. Its grants are not taken back: they are told as lost to who holds them."""
        replica = self.replicas.pop(replica_id, None)
        if replica is None:
            return None
        self._close(replica)
        self.num_sequences -= self._counted.pop(replica_id, 0)
        for key in replica.granted:
            del self.leases[key]
        revision = replica.info.engine.weights_revision
        self.cohorts[revision].num_replicas -= 1
        if not self.cohorts[revision].num_replicas:
            del self.cohorts[revision]
        self.prefixes.forget(replica_id)
        self._heard.pop(replica_id, None)
        if self._ring is not None:
            self._ring.drop(replica)
        for closed in self.breakers.remove(replica_id):
            self.refresh(self.replicas[closed])
        return replica

    def report(self, replica: ReplicaState, report: Report, growth_ratio: float, now: float) -> None:
        for key in report.accepted:
            if self.leases.get(key) is replica:  # else it was asked for again meanwhile, and granted elsewhere
                del self.leases[key]
        replica.report(report, growth_ratio, now)
        self.breakers.reported(replica.replica_id, report.load.num_output_tokens, replica.granted)
        self._heard[replica.replica_id] = None
        self._heard.move_to_end(replica.replica_id)
        self.refresh(replica)

    def grant(self, waiting: Waiting, replica: ReplicaState, now: float) -> None:
        """Count at dispatch: credit, turn, prefix and probe."""
        hashes = waiting.descriptor.block_hashes
        self._num_turns += 1
        replica.last_turn = self._num_turns
        replica.grant(waiting, self.num_cached(waiting, replica), now + self._config.lease_s)
        self.leases[waiting.key] = replica
        self.prefixes.note(replica.replica_id, hashes, replica.info.engine.num_blocks)
        num_output_tokens = 0 if replica.load is None else replica.load.num_output_tokens
        self.breakers.dispatched(replica.replica_id, waiting.key, now, num_output_tokens)
        self.refresh(replica)

    def take_back(self, key: Key) -> bool:
        """An unused grant returns; False if there is none of that key."""
        replica = self.leases.pop(key, None)
        if replica is None:
            return False
        replica.take_back(key)
        self.breakers.returned(replica.replica_id, key)
        self.refresh(replica)
        return True

    def record(self, replica_id: str, key: Key, outcome: Outcome, now: float) -> None:
        """An attempt on that replica has ended: what its breaker makes of it."""
        self.breakers.record(replica_id, key, outcome, now)
        replica = self.replicas.get(replica_id)
        if replica is not None:
            self.refresh(replica)

    def pass_time(self, now: float) -> None:
        """Take back grants whose lease has ended, close who is silent, open whose breaker's backoff is over."""
        while self.leases:
            key, replica = next(iter(self.leases.items()))
            granted = replica.granted[key]
            if granted.expires_at > now:
                break
            self.lapsed[granted.gateway] = granted.expires_at - self._config.lease_s
            self.take_back(key)
        self.close_silent(now)
        for name in self.breakers.pass_time(now):
            self.refresh(self.replicas[name])

    def close_silent(self, now: float) -> None:
        """Who has not reported for `report_timeout_s` gets nothing new. O(1) while nobody is."""
        while self._heard:
            replica = self.replicas[next(iter(self._heard))]
            if replica.reported_at + self._config.report_timeout_s >= now:
                return
            del self._heard[replica.replica_id]
            self._close(replica)

    def refresh(self, replica: ReplicaState) -> None:
        """Put a replica where its numbers say. O(log n)."""
        name = replica.replica_id
        self.num_sequences += replica.num_sequences - self._counted.get(name, 0)
        self._counted[name] = replica.num_sequences
        is_open = (
            replica.credit_slots > 0
            and name in self._heard
            and not replica.is_draining
            and replica.reserved_for is None
            and self.breakers.allows(name)
        )
        if not is_open:
            self._close(replica)
            return
        self._count_spare(name, (replica.credit_slots, max(0, replica.credit_blocks)))
        self.cohorts[replica.info.engine.weights_revision].place(replica)

    def _close(self, replica: ReplicaState) -> None:
        if replica.replica_id in self._open:
            self._count_spare(replica.replica_id, None)
            self.cohorts[replica.info.engine.weights_revision].drop(replica)

    def _count_spare(self, name: str, spare: tuple[int, int] | None) -> None:
        slots, blocks = self._open.pop(name, (0, 0))
        more_slots, more_blocks = spare or (0, 0)
        self._spare = (self._spare[0] + more_slots - slots, self._spare[1] + more_blocks - blocks)
        if spare is not None:
            self._open[name] = spare

    # Questions

    def is_able(self, replica: ReplicaState, waiting: Waiting, now: float) -> bool:
        """Whether `waiting` may be granted that replica now."""
        revision = waiting.descriptor.weights_revision
        return (
            replica.replica_id in self._open
            and revision in ("", replica.info.engine.weights_revision)
            and not waiting.avoids(replica.replica_id, now)
            and replica.fits(waiting)
        )

    def is_stale(self, replica: ReplicaState, now: float) -> bool:
        """Its last report is some intervals old: what it says may be no longer so."""
        return now - replica.reported_at > STALE_SHARE * self._config.report_timeout_s

    def num_cached(self, waiting: Waiting, replica: ReplicaState) -> int:
        """Prompt tokens of `waiting` that this replica is believed to have computed."""
        hashes = waiting.descriptor.block_hashes
        if not hashes:
            return 0
        cached = self.prefixes.num_held(replica.replica_id, hashes) * replica.info.engine.block_size
        return min(cached, waiting.descriptor.num_prompt_tokens - 1)

    def least_loaded(self, waiting: Waiting, now: float) -> ReplicaState | None:
        """The able replica with the least work; None if no replica is able."""
        found = [self._first(cohort.by_work, cohort, waiting, now) for cohort in self.cohorts_for(waiting)]
        return min((r for r in found if r is not None), key=lambda r: (r.work_tokens, r.serial), default=None)

    def next_in_turn(self, waiting: Waiting, now: float) -> ReplicaState | None:
        """The able replica that was granted something the longest ago."""
        found = [self._first(cohort.by_turn, cohort, waiting, now) for cohort in self.cohorts_for(waiting)]
        return min((r for r in found if r is not None), key=lambda r: (r.last_turn, r.serial), default=None)

    def any_able(self, waiting: Waiting, rng: Random, now: float) -> ReplicaState | None:
        """A random able replica, if one is met in a few draws."""
        cohorts = [cohort for cohort in self.cohorts_for(waiting) if len(cohort.by_work)]
        for _ in range(LOOKS if cohorts else 0):
            cohort = cohorts[0] if len(cohorts) == 1 else rng.choice(cohorts)
            replica = cohort.by_work.any(rng)
            if self.is_able(replica, waiting, now):
                return replica
        return None

    def roomiest(self, waiting: Waiting, now: float) -> ReplicaState | None:
        """The open replica with the most free blocks that `waiting` may use, whether or not it fits there."""
        found: list[ReplicaState] = []
        for cohort in self.cohorts_for(waiting):
            allowed = (r for r in cohort.by_room if not waiting.avoids(r.replica_id, now))
            found += [replica for replica in [next(allowed, None)] if replica is not None]
        return max(found, key=lambda r: (r.credit_blocks, -r.serial), default=None)

    def _first(self, ranking: Ranking, cohort: Cohort, waiting: Waiting, now: float) -> ReplicaState | None:
        """The first able one in `ranking`, or the roomiest where the first few are not able."""
        looks = LOOKS + len(waiting.descriptor.avoid)
        for _, replica in zip(range(looks), ranking, strict=False):
            if self.is_able(replica, waiting, now):
                return replica
        if len(cohort.by_room) <= looks:
            return None
        for _, replica in zip(range(looks), cohort.by_room, strict=False):
            if self.is_able(replica, waiting, now):
                return replica
        return None

    def cohorts_for(self, waiting: Waiting) -> Iterator[Cohort]:
        """Those whose weights will do."""
        revision = waiting.descriptor.weights_revision
        if not revision:
            return iter(self.cohorts.values())
        cohort = self.cohorts.get(revision)
        return iter(() if cohort is None else (cohort,))

    def check_invariants(self) -> None:
        for replica in self.replicas.values():
            replica.check_invariants()
            assert all(self.leases[key] is replica for key in replica.granted)
        assert sum(len(replica.granted) for replica in self.replicas.values()) == len(self.leases)
        assert self.num_sequences == sum(replica.num_sequences for replica in self.replicas.values())
        assert self._spare == (sum(s for s, _ in self._open.values()), sum(b for _, b in self._open.values()))
        for cohort in self.cohorts.values():
            for replica in cohort.by_work:
                assert replica.replica_id in self._open
                assert replica.credit_slots > 0 and not replica.is_draining and replica.reserved_for is None
            assert len(cohort.by_work) == len(cohort.by_room) == len(cohort.by_turn)
        assert sum(len(cohort.by_work) for cohort in self.cohorts.values()) == len(self._open)
        self.prefixes.check_invariants()
        self.breakers.check_invariants()
