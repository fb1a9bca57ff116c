"""The grid of ranks: every rank has one place, neighbours agree, impossible grids are refused with the equation."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.layout import LayoutError, RankLayout, RankPosition

layouts = st.builds(RankLayout, st.integers(1, 8), st.integers(1, 8))


def test_two_stages_of_three() -> None:
    layout = RankLayout(tensor_parallel=3, pipeline_parallel=2)
    assert layout.world_size == 6
    assert [layout.position(rank) for rank in (0, 2, 3, 5)] == [
        RankPosition(0, 0),
        RankPosition(0, 2),
        RankPosition(1, 0),
        RankPosition(1, 2),
    ]
    assert list(layout.stage_ranks(1)) == [3, 4, 5]
    assert list(layout.column_ranks(2)) == [2, 5]
    assert (layout.previous_rank(1), layout.next_rank(1)) == (None, 4)
    assert (layout.previous_rank(4), layout.next_rank(4)) == (1, None)


def test_one_rank_is_first_and_last() -> None:
    layout = RankLayout()
    assert layout.is_first_stage(0) and layout.is_last_stage(0)
    assert layout.previous_rank(0) is None and layout.next_rank(0) is None


@given(layouts)
def test_position_and_rank_are_inverse(layout: RankLayout) -> None:
    positions = [layout.position(rank) for rank in range(layout.world_size)]
    assert len(set(positions)) == layout.world_size
    assert [layout.rank_at(p.pp_rank, p.tp_rank) for p in positions] == list(range(layout.world_size))


@given(layouts)
def test_stages_and_columns_cover_the_grid_once(layout: RankLayout) -> None:
    everyone = list(range(layout.world_size))
    stages = [rank for stage in range(layout.pipeline_parallel) for rank in layout.stage_ranks(stage)]
    columns = [rank for part in range(layout.tensor_parallel) for rank in layout.column_ranks(part)]
    assert stages == everyone
    assert sorted(columns) == everyone


@given(layouts)
def test_neighbours_agree(layout: RankLayout) -> None:
    for rank in range(layout.world_size):
        following = layout.next_rank(rank)
        assert (following is None) == layout.is_last_stage(rank)
        if following is not None:
            assert layout.previous_rank(following) == rank
            assert layout.position(following).tp_rank == layout.position(rank).tp_rank
            assert layout.position(following).pp_rank == layout.position(rank).pp_rank + 1


@pytest.mark.parametrize(("tensor_parallel", "pipeline_parallel"), [(0, 1), (1, 0), (-2, 3)])
def test_empty_grid_is_refused(tensor_parallel: int, pipeline_parallel: int) -> None:
    with pytest.raises(LayoutError, match="< 1: a grid has at least one rank"):
        RankLayout(tensor_parallel, pipeline_parallel)


def test_world_size_message_holds_the_equation() -> None:
    RankLayout(2, 3).check_world_size(6)
    with pytest.raises(LayoutError) as refused:
        RankLayout(2, 3).check_world_size(4)
    assert "tensor_parallel * pipeline_parallel = 2 * 3 = 6 != 4 ranks" in str(refused.value)


@pytest.mark.parametrize("rank", [-1, 6])
def test_rank_outside_the_grid(rank: int) -> None:
    with pytest.raises(LayoutError, match=rf"rank = {rank} is not in 0..5"):
        RankLayout(3, 2).position(rank)


def test_position_outside_the_grid() -> None:
    with pytest.raises(LayoutError, match=r"pp_rank = 2 is not in 0..1"):
        RankLayout(3, 2).rank_at(2, 0)
    with pytest.raises(LayoutError, match=r"tp_rank = 3 is not in 0..2"):
        RankLayout(3, 2).rank_at(0, 3)


def test_error_survives_pickling() -> None:
    error = LayoutError("2 * 3 = 6 != 4", "start six")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, LayoutError)
    assert (again.equation, again.remedy, str(again)) == (error.equation, error.remedy, str(error))
