"""LeastLoaded: the replica with the least work ahead in tokens; of a stale view, the power of two choices."""

from random import Random

from cluster.router.waiting import Waiting
from cluster.routing.fleet import Fleet
from cluster.routing.power_of_two import PowerOfTwo
from cluster.routing.replica_state import ReplicaState


class LeastLoaded:
    def __init__(self, rng: Random) -> None:
        self._stale = PowerOfTwo(rng)

    def choose(self, waiting: Waiting, fleet: Fleet, now: float) -> ReplicaState | None:
        best = fleet.least_loaded(waiting, now)
        if best is not None and fleet.is_stale(best, now):
            return self._stale.choose(waiting, fleet, now)
        return best
