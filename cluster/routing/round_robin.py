"""RoundRobin: the replicas in turn, those without credit left out."""

from cluster.routing.fleet import Fleet
from cluster.routing.replica_state import ReplicaState
from cluster.waiting import Waiting


class RoundRobin:
    def choose(self, waiting: Waiting, fleet: Fleet, now: float) -> ReplicaState | None:
        return fleet.next_in_turn(waiting, now)
