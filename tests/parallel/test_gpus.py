"""Each rank of a host sees one GPU, of those that the host's environment shows."""

import pytest

from parallel.gpus import VISIBLE, visible_to_rank
from parallel.layout import LayoutError


def test_a_rank_takes_its_own_of_the_visible_gpus() -> None:
    assert [visible_to_rank(index, {}) for index in (0, 3)] == ["0", "3"]
    assert [visible_to_rank(index, {VISIBLE: "4, 6"}) for index in (0, 1)] == ["4", "6"]
    assert visible_to_rank(1, {VISIBLE: "GPU-a,MIG-b"}) == "MIG-b"


@pytest.mark.parametrize("visible", ["", "4,6"])
def test_more_ranks_than_gpus_are_refused_with_the_numbers(visible: str) -> None:
    with pytest.raises(LayoutError, match=rf"GPU number 2 .* >= {len(visible.split(',')) if visible else 0} that"):
        visible_to_rank(2, {VISIBLE: visible})
