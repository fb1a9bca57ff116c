"""Parts of sizes: nothing is lost, nothing is held twice but key-value heads, and parts are about equal."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.layout import LayoutError
from parallel.tensor_slice import (
    TensorSlice,
    deal,
    deal_heads,
    deal_kv_heads,
    deal_width,
    scaled,
    split_layers,
)

PARTS = st.integers(1, 9)


@given(size=st.integers(1, 500), parts=PARTS, unit=st.sampled_from([1, 2, 32]))
def test_dealing_covers_everything_once_in_nearly_equal_parts(size: int, parts: int, unit: int) -> None:
    total = size * unit
    if size < parts:
        with pytest.raises(LayoutError, match=f"choose tensor_parallel of at most {size}"):
            deal(total, parts, 0, unit)
        return
    ranges = [deal(total, parts, index, unit) for index in range(parts)]
    assert ranges[0][0] == 0 and ranges[-1][1] == total
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(ranges))
    sizes = {end - start for start, end in ranges}
    assert max(sizes) - min(sizes) <= unit and all(size % unit == 0 for size in sizes)


@given(width=st.integers(9, 20_000), parts=PARTS)
def test_widths_are_dealt_in_blocks_only_where_parts_stay_about_equal(width: int, parts: int) -> None:
    sizes = [end - start for start, end in (deal_width(width, parts, index) for index in range(parts))]
    assert sum(sizes) == width
    assert max(sizes) <= 1.07 * min(sizes) + 1


@given(groups=st.integers(1, 8), per_group=st.integers(1, 8), parts=PARTS)
def test_each_query_head_finds_its_key_value_head_at_its_rank(groups: int, per_group: int, parts: int) -> None:
    num_heads = groups * per_group
    try:
        heads = [deal_heads(num_heads, parts, index) for index in range(parts)]
        kv_heads = [deal_kv_heads(groups, parts, index) for index in range(parts)]
    except LayoutError:
        assert num_heads % parts or (groups % parts and parts % groups)
        return
    for (first, end), (first_kv, end_kv) in zip(heads, kv_heads, strict=True):
        local_group = (end - first) // (end_kv - first_kv)
        for head in range(first, end):
            assert first_kv + (head - first) // local_group == head // per_group


def test_scaled_ranges_and_the_size_of_a_slice() -> None:
    assert scaled((1, 3), 16, 100) == (116, 148)
    assert TensorSlice(0, ((0, 4), (10, 13))).size == 7


@given(layers=st.integers(1, 60), stages=st.integers(1, 8), head=st.floats(0.0, 10.0))
def test_stages_are_balanced_with_the_head_counted(layers: int, stages: int, head: float) -> None:
    own = [0.0] * (stages - 1) + [head]
    if layers < stages:
        with pytest.raises(LayoutError):
            split_layers(layers, own, 1.0)
        return
    split = split_layers(layers, own, 1.0)
    assert [layer for stage in split for layer in stage] == list(range(layers))
    costs = [len(stage) + cost for stage, cost in zip(split, own, strict=True)]
    for stage, cost in zip(split, costs, strict=True):  # moving one layer to the cheapest stage helps nobody
        assert len(stage) == 1 or cost <= min(costs) + 1.0 + 1e-9
