"""Block hashes, prefix look-up, admission and growth, in blocks of 2 tokens."""

from hashlib import blake2b

import pytest

from engine.block_hash import block_hashes, chained_hash, root_hash
from engine.kv_cache_manager import KVCacheManager
from engine.sequence import Sequence
from tests.engine.chain_world import generate


def sequence(prompt: list[int], sequence_id: int = 1, **fields: object) -> Sequence:
    request = generate(f"r{sequence_id}", prompt, **fields)
    return Sequence(sequence_id, request, (), list(request.prompt_token_ids), (0, sequence_id))


def manager(num_blocks: int = 8, prefix_caching: bool = True) -> KVCacheManager:
    return KVCacheManager(num_blocks, 2, "r0", prefix_caching)


def admit(kv: KVCacheManager, *sequences: Sequence) -> None:
    for one in sequences:
        assert kv.admit(one, kv.lookup_prefix(one), num_spare=0)


def compute(kv: KVCacheManager, one: Sequence, num_tokens: int) -> None:
    one.num_computed_tokens += num_tokens
    kv.register_computed(one)


def test_hash_of_a_block_is_the_documented_one() -> None:
    """Pinned: other parts of the cluster compute the same numbers."""
    root = blake2b(digest_size=16, person=b"manta.kv.root")
    for part in (b"r0", b"", b"tenant"):
        root.update(len(part).to_bytes(8, "little") + part)
    assert root_hash("r0", "", "tenant") == root.digest()
    first = blake2b(root.digest() + bytes([7, 0, 0, 0, 1, 1, 0, 0]), digest_size=16).digest()
    assert chained_hash(root.digest(), [7, 257]) == first
    assert list(block_hashes([7, 257, 9], 2, root.digest())) == [first]


def test_hashes_name_everything_before_them() -> None:
    root = root_hash("r0", "", "")
    ours = list(block_hashes([1, 2, 3, 4], 2, root))
    assert ours == list(block_hashes([1, 2, 3, 4, 5], 2, root))
    assert ours[1] != list(block_hashes([9, 2, 3, 4], 2, root))[1]
    assert ours[0] != next(block_hashes([2, 1], 2, root))
    assert (
        len({root_hash("r0", "", ""), root_hash("r0", "", "x"), root_hash("r0", "x", ""), root_hash("x", "", "")}) == 4
    )
    assert root_hash("r0", "a", "bc") != root_hash("r0", "ab", "c")


def test_only_computed_blocks_are_found() -> None:
    kv = manager()
    first = sequence([1, 2, 3, 4, 5], 1)
    admit(kv, first)
    second = sequence([1, 2, 3, 4, 6], 2)
    assert kv.lookup_prefix(second).block_ids == []
    compute(kv, first, 3)
    assert kv.lookup_prefix(second).block_ids == first.block_ids[:1]
    compute(kv, first, 2)
    assert kv.lookup_prefix(second).block_ids == first.block_ids[:2]
    admit(kv, second)
    assert second.block_ids[:2] == first.block_ids[:2]
    assert second.num_computed_tokens == 4
    kv.check_invariants([first, second])


def test_one_token_is_always_left_to_compute() -> None:
    kv = manager()
    first = sequence([1, 2, 3, 4], 1)
    admit(kv, first)
    compute(kv, first, 4)
    assert kv.lookup_prefix(sequence([1, 2, 3, 4], 2)).block_ids == first.block_ids[:1]
    assert kv.lookup_prefix(sequence([1, 2, 3, 4, 5], 2)).block_ids == first.block_ids


@pytest.mark.parametrize("fields", [{"cache_salt": "other"}, {"adapter": "other"}, {"prompt_logprobs": 0}])
def test_nothing_is_shared_across_salts_and_adapters_nor_when_every_logit_is_needed(fields: dict[str, object]) -> None:
    kv = manager()
    first = sequence([1, 2, 3, 4], 1)
    admit(kv, first)
    compute(kv, first, 4)
    hit = kv.lookup_prefix(sequence([1, 2, 3, 4], 2, **fields))
    assert (hit.block_ids, hit.next_is_being_computed) == ([], False)


def test_without_prefix_caching_nothing_is_found() -> None:
    kv = manager(prefix_caching=False)
    first = sequence([1, 2, 3, 4], 1)
    admit(kv, first)
    compute(kv, first, 4)
    assert kv.lookup_prefix(sequence([1, 2, 3, 4], 2)).block_ids == []
    kv.check_invariants([first])


def test_a_block_on_its_way_is_announced_until_it_is_computed_or_given_up() -> None:
    kv = manager()
    first, second = sequence([1, 2, 3, 4, 5], 1), sequence([1, 2, 3, 4, 6], 2)
    admit(kv, first)
    assert kv.lookup_prefix(second).next_is_being_computed
    assert not kv.lookup_prefix(sequence([2, 2, 3], 3)).next_is_being_computed
    compute(kv, first, 2)
    assert kv.lookup_prefix(second).next_is_being_computed
    compute(kv, first, 3)
    assert not kv.lookup_prefix(second).next_is_being_computed
    kv.free(first)
    third = sequence([7, 7, 7], 4)
    admit(kv, third)
    kv.free(third)
    assert not kv.lookup_prefix(sequence([7, 7, 7], 5)).next_is_being_computed


def test_admission_needs_blocks_for_all_tokens_and_the_spare() -> None:
    kv = manager(num_blocks=4)
    one = sequence([1, 2, 3, 4, 5], 1)
    assert not kv.admit(one, kv.lookup_prefix(one), num_spare=2)
    assert one.block_ids == []
    assert kv.admit(one, kv.lookup_prefix(one), num_spare=1)
    assert len(one.block_ids) == 3


def test_blocks_revived_by_a_hit_count_as_taken() -> None:
    kv = manager(num_blocks=3)
    first = sequence([1, 2, 3, 4], 1)
    admit(kv, first)
    compute(kv, first, 4)
    kv.free(first)
    second = sequence([1, 2, 3, 4, 5, 6, 7], 2)  # 4 blocks, 2 of them found, but all 3 are free
    hit = kv.lookup_prefix(second)
    assert len(hit.block_ids) == 2
    assert not kv.admit(second, hit, num_spare=0)
    kv.check_invariants([])


def test_growth_adds_a_block_when_the_last_is_full() -> None:
    kv = manager(num_blocks=2)
    one = sequence([1, 2], 1)
    admit(kv, one)
    compute(kv, one, 2)
    one.token_ids.append(3)
    assert kv.grow(one) == one.block_ids[1:]
    one.token_ids.append(4)
    assert kv.grow(one) == []
    one.token_ids.append(5)
    assert kv.grow(one) is None


def test_generated_blocks_are_found_by_the_next_turn() -> None:
    kv = manager()
    first = sequence([1, 2, 3], 1)
    admit(kv, first)
    compute(kv, first, 3)
    first.token_ids.append(4)
    compute(kv, first, 1)
    kv.free(first)
    assert len(kv.lookup_prefix(sequence([1, 2, 3, 4, 5], 2)).block_ids) == 2


def test_distrusted_blocks_are_forgotten() -> None:
    kv = manager()
    first = sequence([1, 2, 3, 4], 1)
    admit(kv, first)
    compute(kv, first, 4)
    kv.free(first, trusted=False)
    assert kv.lookup_prefix(sequence([1, 2, 3, 4], 2)).block_ids == []
    kv.check_invariants([])
