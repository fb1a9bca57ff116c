"""Which shard a request waits in: a rendezvous hash, so that the loss of a shard moves only what waited there."""

from collections.abc import Iterable
from hashlib import blake2b

MEMORY = 128  #: requests for each shard over which a chooser counts, the newest counting most
MOST = 1.1  #: of an even share of them that one shard gets
SLACK = 8.0  #: requests more: few requests need not be spread


def choose_shard(key: bytes, shards: Iterable[int]) -> int | None:
    """The same of these shards for the same key, whoever asks; None if there is none."""
    return max(shards, key=lambda shard: _score(key, shard), default=None)


class ShardChooser:
    """Chooses like `choose_shard`, but passes over a shard that has got more than its share lately.

    Where few prefixes make most of the load, their shard would be loaded while others have little to do, and requests
    are moved only when they have to wait. So what is popular is spread, and the rest stays where it was.
    """

    def __init__(self) -> None:
        self._recent: dict[int, float] = {}  # requests by shard

    def choose(self, key: bytes, shards: Iterable[int]) -> int | None:
        """The first of these shards in the order of the key that has not got too much; None if there is none."""
        ranked = sorted(shards, key=lambda shard: _score(key, shard), reverse=True)
        if not ranked:
            return None
        keep = 1.0 - 1.0 / (MEMORY * len(ranked))
        recent = {shard: keep * self._recent.get(shard, 0.0) for shard in ranked}
        limit = MOST * sum(recent.values()) / len(ranked) + SLACK
        chosen = next(shard for shard in ranked if recent[shard] <= limit)
        recent[chosen] += 1.0
        self._recent.update(recent)
        return chosen


def _score(key: bytes, shard: int) -> tuple[bytes, int]:
    return blake2b(key + shard.to_bytes(4, "big"), digest_size=8).digest(), shard
