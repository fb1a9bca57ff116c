"""A replica is announced to its preferred shard while that lives, else to the next one."""

import pytest

from cluster.replica.home_shard import REPLICAS_PER_SHARD, SETTLE_TICKS, SILENT_TICKS, HomeShard, preferred_shard


@pytest.fixture
def choice() -> HomeShard:
    """Three shards, the last one preferred, all linked."""
    choice = HomeShard(3, preferred=2)
    for shard in range(3):
        choice.on_link(shard)
    return choice


def pass_silence(choice: HomeShard, *speaking: int) -> None:
    for _ in range(SILENT_TICKS + 1):
        choice.on_tick()
        for shard in speaking:
            choice.on_pulse(shard)


def settle(choice: HomeShard, *speaking: int) -> None:
    for _ in range(SETTLE_TICKS):
        choice.on_tick()
        for shard in speaking:
            choice.on_pulse(shard)


def test_no_link_no_shard() -> None:
    assert HomeShard(2, preferred=0).choose() is None


def test_the_preferred_one_while_it_is_linked(choice: HomeShard) -> None:
    assert choice.choose() == 2
    choice.on_lost(2)
    assert choice.choose() == 0
    choice.on_lost(0)
    assert choice.choose() == 1
    choice.on_link(2)
    assert choice.choose() == 1
    settle(choice, 1, 2)
    assert choice.choose() == 2


def test_a_silent_shard_is_left_and_taken_again_when_it_has_spoken_for_a_while(choice: HomeShard) -> None:
    pass_silence(choice, 0, 1)
    assert choice.choose() == 0
    choice.on_pulse(2)
    assert choice.choose() == 0
    settle(choice, 0, 1, 2)
    assert choice.choose() == 2


def test_a_doubtful_shard_is_better_than_none(choice: HomeShard) -> None:
    pass_silence(choice, 0, 1)
    choice.on_pulse(2)
    assert choice.choose() == 0
    choice.on_lost(0)
    choice.on_lost(1)
    assert choice.choose() == 2
    choice.on_link(1)
    choice.on_link(0)
    settle(choice, 0, 1)
    assert choice.choose() == 2


def test_when_all_are_silent_nothing_changes(choice: HomeShard) -> None:
    pass_silence(choice, 0, 1)
    assert choice.choose() == 0
    pass_silence(choice)
    assert choice.choose() == 0
    choice.on_lost(0)
    assert choice.choose() == 2


def test_a_pulse_of_a_lost_link_counts_for_nothing(choice: HomeShard) -> None:
    choice.on_lost(2)
    choice.on_pulse(2)
    assert choice.choose() == 0


def test_few_replicas_share_one_shard_many_spread_evenly() -> None:
    assert {preferred_shard(rank, 2, 4) for rank in range(3)} == {0}
    many = 4 * REPLICAS_PER_SHARD
    homes = [preferred_shard(rank, many, 4) for rank in range(many)]
    assert [homes.count(shard) for shard in range(4)] == [REPLICAS_PER_SHARD] * 4
    assert {preferred_shard(rank, many, 2) for rank in range(many)} == {0, 1}
