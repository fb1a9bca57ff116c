"""PrefixIndex: which replicas were sent which prompt prefix, as block hashes; the router's belief about their caches.

Per replica the least recently sent are forgotten beyond the number of its blocks. The leading blocks of a prompt count
as sent later than those behind them, as in an engine's cache: who holds a block is believed to hold all before it.
"""

from collections import OrderedDict
from collections.abc import Iterator, KeysView, Sequence


class PrefixIndex:
    def __init__(self) -> None:
        self._holders: dict[bytes, dict[str, None]] = {}  # most recently sent last
        self._held: dict[str, OrderedDict[bytes, None]] = {}

    def note(self, replica_id: str, hashes: Sequence[bytes], max_blocks: int) -> None:
        """A prompt with these leading blocks goes to that replica. O(its blocks)."""
        held = self._held.setdefault(replica_id, OrderedDict())
        for block_hash in reversed(hashes):
            held[block_hash] = None
            held.move_to_end(block_hash)
            holders = self._holders.setdefault(block_hash, {})
            holders.pop(replica_id, None)
            holders[replica_id] = None
        while len(held) > max_blocks:
            self._release(held.popitem(last=False)[0], replica_id)

    def forget(self, replica_id: str) -> None:
        """The replica is gone, and its cache with it."""
        for block_hash in self._held.pop(replica_id, ()):
            self._release(block_hash, replica_id)

    def _release(self, block_hash: bytes, replica_id: str) -> None:
        holders = self._holders[block_hash]
        del holders[replica_id]
        if not holders:
            del self._holders[block_hash]

    def num_known(self, hashes: Sequence[bytes]) -> int:
        """How many leading blocks some replica holds. O(log n)."""
        return _leading(hashes, self._holders)

    def num_held(self, replica_id: str, hashes: Sequence[bytes]) -> int:
        """How many leading blocks this replica holds. O(log n)."""
        return _leading(hashes, self._held.get(replica_id, {}))

    def held(self, replica_id: str) -> KeysView[bytes]:
        """All blocks that this replica is believed to hold."""
        return self._held.get(replica_id, {}).keys()

    def holders(self, block_hash: bytes) -> Iterator[str]:
        """Who holds this block, most recently sent first."""
        return reversed(self._holders.get(block_hash, {}))

    def check_invariants(self) -> None:
        pairs = {(block_hash, name) for name, held in self._held.items() for block_hash in held}
        assert pairs == {(block_hash, name) for block_hash, holders in self._holders.items() for name in holders}
        assert all(self._holders.values()), "a block without holders is kept"


def _leading(hashes: Sequence[bytes], known: dict[bytes, dict[str, None]] | dict[bytes, None]) -> int:
    """Length of the known part of `hashes`, which is known up to a point and unknown behind it."""
    low, high = 0, len(hashes)
    while low < high:
        middle = (low + high) // 2
        if hashes[middle] in known:
            low = middle + 1
        else:
            high = middle
    return low
