"""Router: binds waiting requests to replicas as late as possible. Events in, messages out; no socket, no clock.

Requests wait here and nowhere else. A replica gets a request only against credit (see `cluster.routing.replica_state`),
so each step of each replica is filled from the one queue and a slow replica hoards nothing. All state is soft: replicas
announce themselves, gateways repeat what they wait for.
"""

from collections.abc import Mapping
from math import inf
from typing import Any

import msgspec

from cluster.config import RouterConfig
from cluster.frames import (
    Announce,
    Condemn,
    Drain,
    Ended,
    Enqueue,
    Leave,
    ReplicaDown,
    ReplicaInfo,
    ReplicaUp,
    Report,
    Spare,
    Vitals,
    Withdraw,
)
from cluster.router.condemned import Condemned
from cluster.router.model_pool import ModelPool, Outbox
from cluster.router.queue_shard import QueueShard
from cluster.routing.policy import RoutingPolicy
from cluster.routing.replica_state import ReplicaState

__all__ = ["Outbox", "Router"]

HOPELESS_S = 10.0


class Router:
    """One shard of the queue. Methods named `on_...` take an event and return the messages it causes."""

    def __init__(self, config: RouterConfig, policy: RoutingPolicy, shard: int = 0) -> None:
        self._config = config
        self._policy = policy
        self._shard = shard
        self._pools: dict[str, ModelPool] = {}
        self._gateways: dict[str, float] = {}  # when each was last heard of; inf: it has only just connected
        self._condemned = Condemned()

    @property
    def num_granted(self) -> int:
        return sum(pool.num_granted for pool in self._pools.values())

    @property
    def num_refused(self) -> int:
        return sum(pool.num_refused.total() for pool in self._pools.values())

    def replicas(self) -> list[ReplicaState]:
        return [replica for pool in self._pools.values() for replica in pool.fleet.replicas.values()]

    @property
    def pools(self) -> Mapping[str, ModelPool]:
        """By model."""
        return self._pools

    @property
    def num_condemned(self) -> int:
        return len(self._condemned)

    def queues(self) -> dict[str, QueueShard]:
        return {model: pool.queue for model, pool in self._pools.items()}

    def _pool(self, model: str) -> ModelPool:
        if model not in self._pools:
            self._pools[model] = ModelPool(model, self._config, self._policy, self._condemned)
        return self._pools[model]

    # Gateways

    def on_gateway(self, gateway: str) -> Outbox:
        """A gateway has connected (again): tell it all replicas."""
        self._gateways[gateway] = inf
        return [(gateway, ReplicaUp(replica.info)) for replica in self.replicas()]

    def on_gateway_lost(self, gateway: str) -> None:
        """Forget what it waits for; its unused grants return when their lease ends."""
        self._gateways.pop(gateway, None)
        for pool in self._pools.values():
            pool.gateway_lost(gateway)

    def heard(self, gateway: str, now: float) -> None:
        """A frame of it has come."""
        if gateway in self._gateways:
            self._gateways[gateway] = now

    def silent_gateways(self) -> list[str]:
        """Those that let a grant lapse and have said nothing since it was made: frozen, or cut off. Each is told once.

        Whatever else waits for them would take places for the length of a lease, one after the other, and run nothing.
        """
        silent = []
        for pool in self._pools.values():
            lapsed, pool.fleet.lapsed = pool.fleet.lapsed, {}
            silent += [name for name, at in lapsed.items() if self._gateways.get(name, inf) <= at]
        return silent

    def on_enqueue(self, gateway: str, descriptor: Enqueue, now: float) -> Outbox:
        return self._pool(descriptor.model).enqueue(gateway, descriptor, now)

    def on_withdraw(self, withdraw: Withdraw, now: float) -> Outbox:
        """Out of the queue, or an unused grant comes back."""
        key = (withdraw.request_id, withdraw.attempt)
        for pool in self._pools.values():
            outbox = pool.withdraw(key, now)
            if outbox is not None:
                return outbox
        return []

    def on_ended(self, ended: Ended, now: float) -> Outbox:
        """An attempt that was granted here is over."""
        return self._pool(ended.model).ended(ended, now)

    def on_condemn(self, condemn: Condemn, now: float) -> Outbox:
        """Refuse this digest for ten minutes; those that wait are refused at their turn."""
        self._condemned.add(condemn.digest, now)
        return []

    # Replicas

    def on_announce(self, announce: Announce, now: float) -> Outbox:
        self._pool(announce.replica.model).announce(announce.replica, now)
        return [(gateway, ReplicaUp(announce.replica)) for gateway in self._gateways]

    def on_report(self, replica: ReplicaInfo, report: Report, now: float) -> Outbox:
        return self._pool(replica.model).report(replica.replica_id, report, now)

    def on_vitals(self, replica: ReplicaInfo, vitals: Vitals) -> None:
        known = self._pool(replica.model).fleet.replicas.get(replica.replica_id)
        if known is not None:
            known.gpus = vitals.gpus

    def on_leave(self, replica: ReplicaInfo, leave: Leave, now: float) -> Outbox:
        """No more grants to the replica; what it runs goes on."""
        pool = self._pool(replica.model)
        return pool.dispatch(now) if pool.drain(replica.replica_id, leave.comes_back) else []

    def on_replica_lost(self, replica: ReplicaInfo) -> Outbox:
        """Its grants and streams are the gateways' to move: they see its connection end."""
        pool = self._pool(replica.model)
        if not pool.replica_lost(replica.replica_id):
            return []
        down = ReplicaDown(replica.replica_id)
        return [(gateway, down) for gateway in self._gateways]

    def hopeless_replicas(self, now: float) -> list[str]:
        """Those that have reported nothing for so long that their connection is doubted: while they are here, requests
        wait for them.
        """
        return [replica.replica_id for replica in self.replicas() if now - replica.reported_at > HOPELESS_S]

    def drain(self, replica_id: str) -> Drain | None:
        """Take a replica out by hand. Returns what to send it; None if it is not here."""
        known = [pool for pool in self._pools.values() if pool.drain(replica_id)]
        return Drain() if known else None

    # Other shards

    def spare(self) -> list[Spare]:
        """What to announce to the other shards: models with credit and nothing waiting."""
        found = [pool.spare(self._shard, self._config.shards) for pool in self._pools.values()]
        return [spare for spare in found if spare is not None]

    def on_spare(self, spare: Spare, now: float) -> Outbox:
        """Another shard has room: move it requests, if they wait and there is no room here."""
        pool = self._pools.get(spare.model)
        return pool.move(spare, now) if pool is not None else []

    # Time

    def on_tick(self, now: float) -> Outbox:
        """Refuse what has waited too long, and give back the credit of unused grants. Call a few times a second."""
        self._condemned.expire(now)
        return [message for pool in self._pools.values() for message in pool.tick(now)]

    def status(self, now: float) -> dict[str, Any]:
        """The shard, its queues and its replicas, as plain values."""
        return {
            "shard": self._shard,
            "policy": str(self._config.policy),
            "granted": self.num_granted,
            "refused": self.num_refused,
            "condemned": self.num_condemned,
            "queues": {model: pool.status() for model, pool in self._pools.items()},
            "replicas": [
                {
                    **msgspec.to_builtins(replica.info),
                    "load": None if replica.load is None else msgspec.structs.asdict(replica.load),
                    "granted": len(replica.granted),
                    "credit_slots": replica.credit_slots,
                    "credit_blocks": replica.credit_blocks,
                    "breaker": str(pool.fleet.breakers.state(replica.replica_id)),
                    "is_draining": replica.is_draining,
                    "comes_back": replica.comes_back,
                    "report_age_s": now - replica.reported_at,
                }
                for pool in self._pools.values()
                for replica in pool.fleet.replicas.values()
            ],
        }

    def check_invariants(self) -> None:
        for pool in self._pools.values():
            pool.check_invariants()
