"""Router: binds waiting requests to replicas as late as possible. Events in, messages out; no socket, no clock.

Requests wait here and nowhere else. A replica gets a request only against credit (see `cluster.replica_state`), so
each step of each replica is filled from the one queue and a slow replica hoards nothing. All state is soft: replicas
announce themselves, gateways repeat what they wait for.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from cluster.config import RouterConfig
from cluster.frames import (
    Announce,
    Enqueue,
    FromRouter,
    Grant,
    Refuse,
    ReplicaDown,
    ReplicaInfo,
    ReplicaUp,
    Report,
    Withdraw,
)
from cluster.queue_shard import QueueShard, Waiting
from cluster.replica_state import ReplicaState
from cluster.routing_policy import RoutingPolicy

Outbox = list[tuple[str, FromRouter]]  #: (gateway name, message)
_DRAIN_HALF_LIFE_S = 5.0


@dataclass(slots=True)
class ModelPool:
    """One model's queue and replicas, and how fast its queue drains."""

    queue: QueueShard
    replicas: dict[str, ReplicaState] = field(default_factory=dict)
    drain_rate: float = 0.0  #: grants per second, smoothed
    drained_at: float | None = None

    def note_drain(self, now: float) -> None:
        """Fold one grant at `now` into the smoothed rate."""
        if self.drained_at is not None:
            gap = max(now - self.drained_at, 1e-4)
            keep = 0.5 ** (gap / _DRAIN_HALF_LIFE_S)
            self.drain_rate = keep * self.drain_rate + (1 - keep) / gap
        self.drained_at = now

    def wait_s(self) -> float:
        """How long the queue as it stands will take, in seconds; 1 to 60."""
        return min(60.0, max(1.0, len(self.queue) / self.drain_rate if self.drain_rate > 0 else 5.0))


class Router:
    """One shard of the queue. Methods named `on_...` take an event and return the messages it causes."""

    def __init__(self, config: RouterConfig, policy: RoutingPolicy) -> None:
        self._config = config
        self._policy = policy
        self._pools: dict[str, ModelPool] = {}
        self._gateways: set[str] = set()
        self.num_granted = 0
        self.num_refused = 0

    @property
    def is_unused(self) -> bool:
        """Nobody is connected."""
        return not self._gateways and not any(pool.replicas for pool in self._pools.values())

    def replicas(self) -> list[ReplicaState]:
        return [replica for pool in self._pools.values() for replica in pool.replicas.values()]

    def queues(self) -> dict[str, QueueShard]:
        return {model: pool.queue for model, pool in self._pools.items()}

    def _pool(self, model: str) -> ModelPool:
        if model not in self._pools:
            queue = QueueShard(self._config.max_queued_requests, self._config.max_queued_tokens)
            self._pools[model] = ModelPool(queue)
        return self._pools[model]

    # Gateways

    def on_gateway(self, gateway: str) -> Outbox:
        """A gateway has connected (again): tell it all replicas."""
        self._gateways.add(gateway)
        return [(gateway, ReplicaUp(replica.info)) for replica in self.replicas()]

    def on_gateway_lost(self, gateway: str) -> None:
        """Forget what it waits for; its unused grants return when their lease ends."""
        self._gateways.discard(gateway)
        for pool in self._pools.values():
            for key in pool.queue.of_gateway(gateway):
                pool.queue.remove(key)

    def on_enqueue(self, gateway: str, descriptor: Enqueue, now: float) -> Outbox:
        pool = self._pool(descriptor.model)
        if pool.queue.is_full(descriptor):
            self.num_refused += 1
            message = f"the queue of {descriptor.model!r} is full; try again later"
            return [(gateway, _refuse(descriptor, "server_is_overloaded", message, pool.wait_s()))]
        pool.queue.push(Waiting(descriptor, gateway, now, now + descriptor.timeout_s))
        return self._dispatch(pool, now)

    def on_withdraw(self, withdraw: Withdraw, now: float) -> Outbox:
        """Out of the queue, or an unused grant comes back."""
        key = (withdraw.request_id, withdraw.attempt)
        outbox: Outbox = []
        for pool in self._pools.values():
            if pool.queue.remove(key) is not None:
                return outbox
            if any(replica.take_back(key) for replica in pool.replicas.values()):
                return self._dispatch(pool, now)
        return outbox

    # Replicas

    def on_announce(self, announce: Announce, now: float) -> Outbox:
        info = announce.replica
        self._pool(info.model).replicas[info.replica_id] = ReplicaState(info, now)
        return [(gateway, ReplicaUp(info)) for gateway in self._gateways]

    def on_report(self, replica: ReplicaInfo, report: Report, now: float) -> Outbox:
        pool = self._pool(replica.model)
        state = pool.replicas.get(replica.replica_id)
        if state is None:
            return []
        state.report(report, now)
        return self._dispatch(pool, now) if len(pool.queue) else []

    def on_replica_lost(self, replica: ReplicaInfo) -> Outbox:
        if self._pool(replica.model).replicas.pop(replica.replica_id, None) is None:
            return []
        return [(gateway, ReplicaDown(replica.replica_id)) for gateway in self._gateways]

    # Time

    def on_tick(self, now: float) -> Outbox:
        """Refuse what has waited too long, and give back the credit of unused grants. Call a few times a second."""
        outbox: Outbox = []
        for pool in self._pools.values():
            for waiting in pool.queue.expire(now):
                self.num_refused += 1
                outbox.append((waiting.gateway, self._expired(waiting, pool)))
            for replica in pool.replicas.values():
                replica.expire(now)
            outbox += self._dispatch(pool, now)
        return outbox

    def _expired(self, waiting: Waiting, pool: ModelPool) -> Refuse:
        if not pool.replicas:
            message = f"no replica of {waiting.descriptor.model!r} became ready in time"
            return _refuse(waiting.descriptor, "no_ready_replica", message, 5.0)
        waited = f"waited {waiting.descriptor.timeout_s:.3g} s in the queue without its turn"
        return _refuse(waiting.descriptor, "deadline_exceeded", f"the request {waited}", pool.wait_s())

    # The decision

    def _dispatch(self, pool: ModelPool, now: float) -> Outbox:
        """Grant from the head of the queue while some replica has credit for it."""
        outbox: Outbox = []
        while (head := pool.queue.peek()) is not None:
            able = self._able(pool.replicas.values(), head.descriptor, now)
            if not able:
                break
            chosen = self._policy.choose(head.descriptor, able)
            chosen.grant(head.key, head.descriptor.num_prompt_tokens, now + self._config.lease_s)
            pool.queue.remove(head.key)
            pool.note_drain(now)
            self.num_granted += 1
            outbox.append((head.gateway, Grant(*head.key, chosen.info.replica_id, self._config.lease_s)))
        return outbox

    def _able(self, replicas: Iterable[ReplicaState], descriptor: Enqueue, now: float) -> list[ReplicaState]:
        heard_since = now - self._config.report_timeout_s
        return [
            replica
            for replica in replicas
            if replica.reported_at >= heard_since and replica.has_credit(descriptor.num_prompt_tokens)
        ]

    def check_invariants(self) -> None:
        for pool in self._pools.values():
            pool.queue.check_invariants()
            for replica in pool.replicas.values():
                replica.check_invariants()


def _refuse(descriptor: Enqueue, code: str, message: str, retry_after_s: float | None) -> Refuse:
    return Refuse(descriptor.request_id, descriptor.attempt, code, message, retry_after_s)
