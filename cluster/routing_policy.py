"""How a request chooses among the replicas that have credit for it: one small class a policy."""

from collections.abc import Sequence
from typing import Protocol

from cluster.frames import Enqueue
from cluster.replica_state import ReplicaState


class RoutingPolicy(Protocol):
    def choose(self, request: Enqueue, replicas: Sequence[ReplicaState]) -> ReplicaState:
        """One of `replicas`, which is not empty and holds only replicas with credit for `request`."""
        ...


class LeastLoaded:
    """The replica with the least work ahead in tokens; among equals the one with the most free blocks."""

    def choose(self, request: Enqueue, replicas: Sequence[ReplicaState]) -> ReplicaState:
        return min(replicas, key=lambda replica: (replica.work_tokens, -replica.credit_blocks))
