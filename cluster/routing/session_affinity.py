"""SessionAffinity: the same session, or else the same prefix, goes to the same replica, unless that has far too much.

A consistent hash with bounded load: from the key's place on the ring the first able replica that holds at most a
quarter and four more sequences than the average. A few are looked at; then the least loaded takes it.
"""

from itertools import islice
from random import Random

from cluster.router.waiting import Waiting
from cluster.routing.fleet import LOOKS, Fleet
from cluster.routing.least_loaded import LeastLoaded
from cluster.routing.replica_state import ReplicaState

MAX_OVER_AVERAGE = 1.25
SLACK = 4  #: sequences: on an idle fleet a session need not leave its replica for its second request


class SessionAffinity:
    def __init__(self, rng: Random) -> None:
        self._least_loaded = LeastLoaded(rng)

    def choose(self, waiting: Waiting, fleet: Fleet, now: float) -> ReplicaState | None:
        asked = waiting.descriptor
        key = asked.session.encode() or (asked.block_hashes[0] if asked.block_hashes else b"")
        if key:
            bound = MAX_OVER_AVERAGE * fleet.num_sequences / max(1, len(fleet.replicas)) + SLACK
            for replica in islice(fleet.ring.from_key(key), LOOKS):
                if replica.num_sequences < bound and fleet.is_able(replica, waiting, now):
                    return replica
        return self._least_loaded.choose(waiting, fleet, now)
