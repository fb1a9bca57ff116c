"""Reference counts, eviction order and look-up of blocks."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.block_pool import BlockPool


def test_the_null_block_is_never_allocated() -> None:
    pool = BlockPool(3)
    assert sorted(pool.allocate(3)) == [1, 2, 3]
    assert pool.num_free == 0


def test_a_released_block_is_found_until_it_is_taken() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.register(first, b"a")
    pool.release([first])
    assert pool.find(b"a") == first
    pool.share([first])
    assert pool.num_free == 0
    pool.release([first])
    assert pool.allocate(1) == [first]
    assert pool.find(b"a") is None
    pool.check_invariants([first, second])


def test_blocks_without_contents_go_first_then_the_least_recently_released() -> None:
    pool = BlockPool(4)
    a, b, c, d = pool.allocate(4)
    for block_id, block_hash in ((a, b"a"), (b, b"b"), (d, b"d")):
        pool.register(block_id, block_hash)
    pool.release([d])
    pool.release([a, b, c])  # c holds nothing worth keeping; b follows a, so it goes before a
    assert pool.allocate(4) == [c, d, b, a]


def test_the_first_block_registered_under_a_hash_stays() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.register(first, b"a")
    pool.register(second, b"a")
    assert pool.find(b"a") == first
    pool.release([second])
    assert pool.find(b"a") == first
    pool.check_invariants([first])


def test_forgotten_blocks_are_not_found() -> None:
    pool = BlockPool(1)
    held = pool.allocate(1)
    pool.register(held[0], b"a")
    pool.forget(held)
    assert pool.find(b"a") is None
    pool.check_invariants(held)


def test_releasing_too_often_is_noticed() -> None:
    pool = BlockPool(1)
    held = pool.allocate(1)
    pool.release(held)
    with pytest.raises(AssertionError, match="more often"):
        pool.release(held)


@pytest.mark.parametrize("held", [[], [1, 1], [1, 2]])
def test_invariants_notice_wrong_holders(held: list[int]) -> None:
    pool = BlockPool(2)
    assert pool.allocate(1) == [1]
    with pytest.raises(AssertionError):
        pool.check_invariants(held)


class BlockPoolMachine(RuleBasedStateMachine):
    """Sequences that take, share and give back blocks, against a plain model of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6)
        self.tables: list[list[int]] = []
        self.registered: dict[bytes, int] = {}

    @rule(count=st.integers(1, 4))
    def allocate(self, count: int) -> None:
        if count > self.pool.num_free:
            return
        table = self.pool.allocate(count)
        held = [block_id for other in self.tables for block_id in other]
        assert len(set(table)) == count
        assert not set(table) & set(held)
        self.registered = {h: b for h, b in self.registered.items() if b not in table}
        self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), block_hash=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def register(self, data: st.DataObject, block_hash: bytes) -> None:
        block_id = data.draw(st.sampled_from(data.draw(st.sampled_from(self.tables))))
        self.pool.register(block_id, block_hash)
        if block_hash not in self.registered and block_id not in self.registered.values():
            self.registered[block_hash] = block_id

    @rule(block_hash=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def share(self, block_hash: bytes) -> None:
        block_id = self.pool.find(block_hash)
        if block_id is not None:
            self.pool.share([block_id])
            self.tables.append([block_id])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table)

    @invariant()
    def books_agree(self) -> None:
        held = [block_id for table in self.tables for block_id in table]
        self.pool.check_invariants(held)
        assert self.pool.num_free == 6 - len(set(held))
        for block_hash in (b"a", b"b", b"c", b"d"):
            assert self.pool.find(block_hash) == self.registered.get(block_hash)


TestBlockPoolMachine = BlockPoolMachine.TestCase
TestBlockPoolMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
