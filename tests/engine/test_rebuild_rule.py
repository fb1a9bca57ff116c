"""When the ranks of a replica are rebuilt, and which."""

import pytest

from engine.rebuild_rule import LEAST_BOUND_S, MOST, WITHIN_S, RebuildRule, ranks_to_replace


def test_after_some_rebuilds_within_a_while_the_replica_gives_up() -> None:
    rule = RebuildRule(start_s=5.0)
    assert [rule.may_begin(float(i)) for i in range(MOST + 2)] == [True] * MOST + [False] * 2


def test_old_rebuilds_are_forgiven_one_by_one() -> None:
    rule = RebuildRule(start_s=5.0)
    for i in range(MOST):
        assert rule.may_begin(i * 10.0)
    assert not rule.may_begin(WITHIN_S - 1.0)
    assert rule.may_begin(WITHIN_S)
    assert not rule.may_begin(WITHIN_S + 9.0)
    assert rule.may_begin(WITHIN_S + 10.0)


@pytest.mark.parametrize(("start_s", "bound_s"), [(2.0, LEAST_BOUND_S), (400.0, 400.0)])
def test_it_may_take_as_long_as_a_start_and_never_less_than_a_moment(start_s: float, bound_s: float) -> None:
    assert RebuildRule(start_s).bound_s == bound_s


@pytest.mark.parametrize(
    ("accused", "ended", "replaced"), [(1, [], [1]), (1, [1], [1]), (2, [0, 2], [0, 2]), (3, [2, 1, 0], [0, 1, 2, 3])]
)
def test_the_accused_and_all_that_have_ended_are_replaced(accused: int, ended: list[int], replaced: list[int]) -> None:
    assert ranks_to_replace(accused, ended) == replaced
