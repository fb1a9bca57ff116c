"""The names of KV blocks: a BLAKE2b chain over tokens, shared by the engine's cache and the router's choice of replica.

A block's hash names the block's tokens and all that stands before them, under one tenant salt, adapter and weights
revision. So equal hashes mean equal keys and values, and nothing is shared across salts.
"""

import struct
from collections.abc import Iterator
from hashlib import blake2b

HASH_BYTES = 16


def root_hash(weights_revision: str, adapter: str, cache_salt: str) -> bytes:
    """Parent of every first block: what must agree before any two blocks can be equal."""
    root = blake2b(digest_size=HASH_BYTES, person=b"manta.kv.root")
    for part in (weights_revision, adapter, cache_salt):
        encoded = part.encode()
        root.update(len(encoded).to_bytes(8, "little") + encoded)
    return root.digest()


def chained_hash(parent: bytes, token_ids: list[int]) -> bytes:
    """Hash of a full block of `token_ids` (each below 2**32) that follows the block hashed `parent`."""
    return blake2b(parent + struct.pack(f"<{len(token_ids)}I", *token_ids), digest_size=HASH_BYTES).digest()


def block_hashes(token_ids: list[int], block_size: int, root: bytes) -> Iterator[bytes]:
    """Hashes of the full blocks of `token_ids`, first to last; lazy, so that a look-up can stop at a miss."""
    parent = root
    for end in range(block_size, len(token_ids) + 1, block_size):
        parent = chained_hash(parent, token_ids[end - block_size : end])
        yield parent
