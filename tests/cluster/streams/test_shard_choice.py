"""Which shard a request waits in."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.streams.shard_choice import ShardChooser, choose_shard


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


def test_a_chooser_keeps_to_the_order_of_the_key_and_spreads_what_is_popular() -> None:
    chooser = ShardChooser()
    home = choose_shard(b"popular", range(4))
    assert [chooser.choose(b"popular", range(4)) for _ in range(8)] == [home] * 8, "few requests stay together"
    popular = Counter(chooser.choose(b"popular", range(4)) for _ in range(1000))
    assert set(popular) == {0, 1, 2, 3} and max(popular.values()) < 1.3 * 250
    mixed = ShardChooser()
    keys = [str(number).encode() for number in range(1000)]
    at_home = sum(mixed.choose(key, range(4)) == choose_shard(key, range(4)) for key in keys)
    assert at_home > 900, "an even load is left where the keys put it"


def test_a_chooser_goes_on_with_the_shards_that_are_left() -> None:
    chooser = ShardChooser()
    assert chooser.choose(b"key", []) is None
    for number in range(100):
        chooser.choose(str(number).encode(), range(3))
    assert {chooser.choose(str(number).encode(), {1}) for number in range(100)} == {1}
