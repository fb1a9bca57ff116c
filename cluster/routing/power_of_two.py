"""PowerOfTwo: two random replicas, the less loaded of them. Good where the view is old: nobody is everyone's best."""

from random import Random

from cluster.router.waiting import Waiting
from cluster.routing.fleet import Fleet
from cluster.routing.replica_state import ReplicaState


class PowerOfTwo:
    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def choose(self, waiting: Waiting, fleet: Fleet, now: float) -> ReplicaState | None:
        first = fleet.any_able(waiting, self._rng, now)
        if first is None:
            return fleet.least_loaded(waiting, now)
        second = fleet.any_able(waiting, self._rng, now) or first
        return min(first, second, key=lambda replica: (replica.work_tokens, replica.serial))
