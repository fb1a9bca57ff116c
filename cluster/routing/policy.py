"""RoutingPolicy: what every policy offers, and which setting means which."""

from random import Random
from typing import Protocol

from cluster.config import Policy, RouterConfig
from cluster.router.waiting import Waiting
from cluster.routing.fleet import Fleet
from cluster.routing.least_loaded import LeastLoaded
from cluster.routing.power_of_two import PowerOfTwo
from cluster.routing.prefix_affinity import PrefixAffinity
from cluster.routing.replica_state import ReplicaState
from cluster.routing.round_robin import RoundRobin
from cluster.routing.session_affinity import SessionAffinity


class RoutingPolicy(Protocol):
    def choose(self, waiting: Waiting, fleet: Fleet, now: float) -> ReplicaState | None:
        """One of the fleet's replicas that are able to take the request; None only if no replica is able."""
        ...


def policy_of(config: RouterConfig, seed: int = 0) -> RoutingPolicy:
    """The configured policy; the same seed and events, the same choices."""
    rng = Random(seed)
    match config.policy:
        case Policy.PREFIX_AFFINITY:
            return PrefixAffinity(rng, config.affinity_cap_tokens)
        case Policy.LEAST_LOADED:
            return LeastLoaded(rng)
        case Policy.POWER_OF_TWO:
            return PowerOfTwo(rng)
        case Policy.ROUND_ROBIN:
            return RoundRobin()
        case Policy.SESSION_AFFINITY:
            return SessionAffinity(rng)
