"""Which shard a request waits in: a rendezvous hash, so that the loss of a shard moves only what waited there."""

from collections.abc import Iterable
from hashlib import blake2b


def choose_shard(key: bytes, shards: Iterable[int]) -> int | None:
    """The same of these shards for the same key, whoever asks; None if there is none."""
    return max(shards, key=lambda shard: _score(key, shard), default=None)


def _score(key: bytes, shard: int) -> tuple[bytes, int]:
    return blake2b(key + shard.to_bytes(4, "big"), digest_size=8).digest(), shard
