"""RoundRobin: the replicas in turn, those without credit left out."""

from cluster.router.waiting import Waiting
from cluster.routing.fleet import Fleet
from cluster.routing.replica_state import ReplicaState


class RoundRobin:
    def choose(self, waiting: Waiting, fleet: Fleet, now: float) -> ReplicaState | None:
        return fleet.next_in_turn(waiting, now)
