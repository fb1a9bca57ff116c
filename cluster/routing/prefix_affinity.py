"""PrefixAffinity: least work, where a prompt's cached prefix counts as work saved, up to a cap.

    score = tokens of the prompt + work ahead of it - min(cached tokens, cap)

The cap bounds how much more work a replica may have than the least loaded one and still be chosen for its cache, so a
popular prefix spreads. Candidates are the least loaded replica and the last few that were sent the longest known
prefix.
"""

from itertools import islice
from random import Random

from cluster.router.waiting import Waiting
from cluster.routing.fleet import Fleet
from cluster.routing.power_of_two import PowerOfTwo
from cluster.routing.replica_state import ReplicaState

MAX_HOLDERS = 4


class PrefixAffinity:
    def __init__(self, rng: Random, cap_tokens: int) -> None:
        self._stale = PowerOfTwo(rng)
        self._cap_tokens = cap_tokens

    def choose(self, waiting: Waiting, fleet: Fleet, now: float) -> ReplicaState | None:
        best = fleet.least_loaded(waiting, now)
        if best is None:
            return None
        if fleet.is_stale(best, now):
            best = self._stale.choose(waiting, fleet, now) or best
        hashes = waiting.descriptor.block_hashes
        num_known = fleet.prefixes.num_known(hashes)
        if not num_known:
            return best
        best_score = self._score(best, waiting, fleet)
        for name in islice(fleet.prefixes.holders(hashes[num_known - 1]), MAX_HOLDERS):
            holder = fleet.replicas[name]
            if holder is not best and fleet.is_able(holder, waiting, now):
                score = self._score(holder, waiting, fleet)
                if score < best_score:
                    best, best_score = holder, score
        return best

    def _score(self, replica: ReplicaState, waiting: Waiting, fleet: Fleet) -> int:
        bonus = min(self._cap_tokens, fleet.num_cached(waiting, replica))
        return waiting.descriptor.num_prompt_tokens + replica.work_tokens - bonus
