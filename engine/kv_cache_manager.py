"""Which blocks a sequence has, gets and can share; known by hash (`engine.block_hash`), never looked at."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from engine.block_hash import block_hashes, chained_hash, root_hash
from engine.block_pool import BlockPool
from engine.sequence import Sequence


@dataclass(slots=True, frozen=True)
class PrefixHit:
    """Leading blocks of a sequence that are computed already, and whether the next one is on its way."""

    block_ids: list[int]
    next_is_being_computed: bool  #: a running sequence computes the block after these right now


class KVCacheManager:
    """Gives blocks to sequences and finds computed prefixes, also those of sequences that are still running."""

    def __init__(self, num_blocks: int, block_size: int, weights_revision: str, prefix_caching: bool) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self._weights_revision = weights_revision
        self._prefix_caching = prefix_caching
        self._frontier: Counter[bytes] = Counter()  # full blocks that running sequences compute next

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` positions."""
        return -(-num_tokens // self.block_size)

    def lookup_prefix(self, sequence: Sequence) -> PrefixHit:
        """Longest computed prefix, never the whole: at least one token is left to compute (its logits are needed).

        A sequence that needs the logits of its prompt finds nothing.
        """
        block_ids: list[int] = []
        if not self._prefix_caching or sequence.wants_prompt_logprobs:
            return PrefixHit(block_ids, False)
        for index in range((sequence.num_tokens - 1) // self.block_size):
            block_hash = self._hash_of(sequence, index)
            block_id = self.pool.find(block_hash)
            if block_id is None:
                return PrefixHit(block_ids, block_hash in self._frontier)
            block_ids.append(block_id)
        return PrefixHit(block_ids, False)

    def admit(self, sequence: Sequence, hit: PrefixHit, num_spare: int) -> bool:
        """Give `sequence` the blocks of all its tokens, `hit` first; False if fewer than `num_spare` would be left."""
        num_new = self.num_blocks_for(sequence.num_tokens) - len(hit.block_ids)
        num_revived = sum(map(self.pool.is_free, hit.block_ids))
        if self.pool.num_free < num_new + num_revived + num_spare:
            return False
        self.pool.share(hit.block_ids)
        sequence.block_ids = hit.block_ids + self.pool.allocate(num_new)
        sequence.num_computed_tokens = sequence.num_scheduled_tokens = len(hit.block_ids) * self.block_size
        sequence.num_registered_blocks = len(hit.block_ids)
        self._move_frontier(sequence)
        return True

    def grow(self, sequence: Sequence) -> list[int] | None:
        """Blocks added so that every known token has a slot (none: []), or None when there are not enough."""
        num_new = self.num_blocks_for(sequence.num_tokens) - len(sequence.block_ids)
        if num_new > self.pool.num_free:
            return None
        new_block_ids = self.pool.allocate(num_new)
        sequence.block_ids += new_block_ids
        return new_block_ids

    def register_computed(self, sequence: Sequence) -> None:
        """Let others find the full blocks that were computed since the last call."""
        if not self._prefix_caching:
            return
        num_full = sequence.num_computed_tokens // self.block_size
        if num_full == sequence.num_registered_blocks:
            return
        for index in range(sequence.num_registered_blocks, num_full):
            self.pool.register(sequence.block_ids[index], self._hash_of(sequence, index))
        sequence.num_registered_blocks = num_full
        self._move_frontier(sequence)

    def free(self, sequence: Sequence, trusted: bool = True) -> None:
        """Take all blocks back. What was registered stays findable until evicted, unless it is not `trusted`."""
        if not trusted:
            self.pool.forget(sequence.block_ids)
        self.pool.release(sequence.block_ids)
        sequence.block_ids = []
        sequence.num_computed_tokens = sequence.num_scheduled_tokens = 0
        sequence.num_registered_blocks = 0
        self._move_frontier(sequence)

    def forget_all(self) -> None:
        """No block holds what it held; no sequence has any."""
        assert self.pool.num_free == self.pool.num_blocks, "a sequence still has blocks"
        self.pool = BlockPool(self.pool.num_blocks)

    def check_invariants(self, running: Iterable[Sequence]) -> None:
        """Compare the bookkeeping with the sequences that hold blocks."""
        running = list(running)
        self.pool.check_invariants(block_id for sequence in running for block_id in sequence.block_ids)
        frontier = Counter(s.frontier_hash for s in running if s.frontier_hash is not None)
        assert self._frontier == frontier, f"frontier {self._frontier} of {frontier}"
        for sequence in running:
            at = f"sequence {sequence.sequence_id}"
            assert sequence.num_registered_blocks * self.block_size <= sequence.num_computed_tokens, at
            assert sequence.num_computed_tokens <= len(sequence.block_ids) * self.block_size, at
            root = self._root_of(sequence)
            assert sequence.block_hashes == list(
                block_hashes(sequence.token_ids[: len(sequence.block_hashes) * self.block_size], self.block_size, root)
            ), f"{at}: hashes do not name its tokens"

    def _hash_of(self, sequence: Sequence, index: int) -> bytes:
        """Hash of full block `index`, at most one past those already hashed."""
        hashes = sequence.block_hashes
        if index == len(hashes):
            start = index * self.block_size
            parent = hashes[-1] if hashes else self._root_of(sequence)
            hashes.append(chained_hash(parent, sequence.token_ids[start : start + self.block_size]))
        return hashes[index]

    def _root_of(self, sequence: Sequence) -> bytes:
        request = sequence.request
        return root_hash(self._weights_revision, request.adapter, request.cache_salt)

    def _move_frontier(self, sequence: Sequence) -> None:
        """Note which full block the sequence computes next, so that an equal prefix can wait for it."""
        if sequence.frontier_hash is not None:
            self._frontier[sequence.frontier_hash] -= 1
            if self._frontier[sequence.frontier_hash] == 0:
                del self._frontier[sequence.frontier_hash]
            sequence.frontier_hash = None
        index = sequence.num_registered_blocks
        if self._prefix_caching and sequence.block_ids and (index + 1) * self.block_size <= sequence.num_tokens:
            sequence.frontier_hash = self._hash_of(sequence, index)
            self._frontier[sequence.frontier_hash] += 1
