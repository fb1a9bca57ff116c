"""Who holds which KV block, which blocks may be taken next, and which block holds a known prefix."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

NULL_BLOCK_ID = 0  #: never allocated: padding tokens read and write it


@dataclass(slots=True, eq=False)
class Block:
    """A run of `block_size` KV slots on every rank. It knows no tokens, only the hash they were registered under."""

    block_id: int
    ref_count: int = 0  #: sequences whose table holds it
    block_hash: bytes | None = None  #: set while the prefix cache can find it


class BlockPool:
    """Blocks 1 .. num_blocks with their reference counts; every operation is O(1) per block.

        held by sequences     ref_count > 0, not in the free queue, found by hash if registered
        free but remembered   ref_count = 0, in the free queue, still found by hash: a hit revives it
        free and forgotten    ref_count = 0, at the head of the free queue, no hash

    The free queue is in eviction order: forgotten blocks first, then the least recently released.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._blocks = [Block(block_id) for block_id in range(num_blocks + 1)]
        self._free: OrderedDict[int, Block] = OrderedDict((block.block_id, block) for block in self._blocks[1:])
        self._by_hash: dict[bytes, Block] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, remembered ones included."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks (the caller has looked at `num_free`), forgetting what they held."""
        taken = []
        for _ in range(count):
            block_id, block = self._free.popitem(last=False)
            block.ref_count = 1
            self._forget(block)
            taken.append(block_id)
        return taken

    def find(self, block_hash: bytes) -> int | None:
        """The block that holds what `block_hash` names."""
        block = self._by_hash.get(block_hash)
        return None if block is None else block.block_id

    def is_free(self, block_id: int) -> bool:
        """Whether no sequence holds it."""
        return self._blocks[block_id].ref_count == 0

    def share(self, block_ids: Iterable[int]) -> None:
        """Count one more holder for each block."""
        for block_id in block_ids:
            block = self._blocks[block_id]
            if block.ref_count == 0:
                del self._free[block_id]
            block.ref_count += 1

    def release(self, block_ids: list[int]) -> None:
        """Count one holder less. The last of the list is evicted first: a prefix outlives what follows it."""
        for block_id in reversed(block_ids):
            block = self._blocks[block_id]
            assert block.ref_count > 0, f"block {block_id} released more often than shared"
            block.ref_count -= 1
            if block.ref_count == 0:
                self._free[block_id] = block
                if block.block_hash is None:
                    self._free.move_to_end(block_id, last=False)

    def register(self, block_id: int, block_hash: bytes) -> None:
        """Let `find` see a held, computed block; where another block already has the hash, that one stays."""
        block = self._blocks[block_id]
        assert block.ref_count > 0, f"block {block_id} registered while nobody holds it"
        if block.block_hash is None and block_hash not in self._by_hash:
            block.block_hash = block_hash
            self._by_hash[block_hash] = block

    def forget(self, block_ids: Iterable[int]) -> None:
        """Make held blocks unfindable (their contents cannot be trusted)."""
        for block_id in block_ids:
            self._forget(self._blocks[block_id])

    def _forget(self, block: Block) -> None:
        if block.block_hash is not None:
            del self._by_hash[block.block_hash]
            block.block_hash = None

    def check_invariants(self, held: Iterable[int]) -> None:
        """Compare the bookkeeping with `held`, the blocks of all sequences, one entry per holder."""
        counts = [0] * (self.num_blocks + 1)
        for block_id in held:
            counts[block_id] += 1
        assert counts[NULL_BLOCK_ID] == 0, "a sequence holds the null block"
        assert NULL_BLOCK_ID not in self._free, "the null block is in the free queue"
        for block in self._blocks[1:]:
            at = f"block {block.block_id}"
            num_holders = counts[block.block_id]
            assert block.ref_count == num_holders, f"{at}: {block.ref_count} counted, {num_holders} hold it"
            assert (block.ref_count == 0) == (block.block_id in self._free), f"{at}: free and held, or neither"
            if block.block_hash is not None:
                assert self._by_hash.get(block.block_hash) is block, f"{at}: its hash finds another block"
        for block_hash, block in self._by_hash.items():
            assert block.block_hash == block_hash, f"block {block.block_id}: found by a hash it does not have"
