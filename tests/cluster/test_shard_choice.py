"""Which shard a request waits in."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.shard_choice import choose_shard


def test_no_shard_no_choice() -> None:
    assert choose_shard(b"key", []) is None


def test_keys_spread_evenly() -> None:
    chosen = Counter(choose_shard(str(key).encode(), range(4)) for key in range(4000))
    assert set(chosen) == {0, 1, 2, 3}
    assert max(chosen.values()) < 1.2 * min(chosen.values())


@given(st.binary(max_size=20), st.sets(st.integers(0, 63), min_size=2), st.data())
def test_losing_a_shard_moves_only_what_waited_there(key: bytes, shards: set[int], data: st.DataObject) -> None:
    chosen = choose_shard(key, shards)
    lost = data.draw(st.sampled_from(sorted(shards)))
    after = choose_shard(key, shards - {lost})
    assert after in shards - {lost}
    assert after == chosen or chosen == lost
    assert choose_shard(key, sorted(shards, reverse=True)) == chosen, "the order of the shards does not matter"
