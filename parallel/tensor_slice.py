"""Which part of each dimension a rank of a tensor-parallel group holds. Pure arithmetic; knows no tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallel.layout import LayoutError

Range = tuple[int, int]  #: first index and end

#: Widths are dealt in units of the kernels' block, so that no rank pays for padding, where parts stay about equal.
_WIDTH_UNIT = 32
_MIN_UNITS = 16


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """The indexes of dimension `dim` that one rank holds: `ranges` one after the other."""

    dim: int
    ranges: tuple[Range, ...]

    @property
    def size(self) -> int:
        """Length of the dimension at this rank."""
        return sum(end - start for start, end in self.ranges)


def deal(size: int, parts: int, index: int, unit: int = 1) -> Range:
    """Part `index` of `size` dealt in whole units: sizes differ by at most one unit, and none is empty."""
    units = size // unit
    if size % unit or units < parts:
        raise LayoutError(
            f"{size} / {unit} = {units} units for tensor_parallel = {parts} ranks",
            f"choose tensor_parallel of at most {units}",
        )
    start, end = (part * (units // parts) + min(part, units % parts) for part in (index, index + 1))
    return start * unit, end * unit


def deal_width(size: int, parts: int, index: int) -> Range:
    """Part `index` of the width of a feed-forward layer."""
    even = size % (_WIDTH_UNIT * parts) == 0
    many = size % _WIDTH_UNIT == 0 and size // _WIDTH_UNIT >= _MIN_UNITS * parts
    return deal(size, parts, index, _WIDTH_UNIT if even or many else 1)


def deal_heads(num_heads: int, parts: int, index: int) -> Range:
    """The query heads of part `index`: the same number for each."""
    if num_heads % parts:
        raise LayoutError(
            f"{num_heads} attention heads % tensor_parallel = {parts} is {num_heads % parts}, not 0",
            f"choose tensor_parallel among the divisors of {num_heads}",
        )
    return deal(num_heads, parts, index)


def deal_kv_heads(num_kv_heads: int, parts: int, index: int) -> Range:
    """The key-value heads of part `index`; with fewer heads than parts, neighbours hold the same head."""
    if num_kv_heads % parts == 0:
        return deal(num_kv_heads, parts, index)
    if parts % num_kv_heads == 0:
        head = index * num_kv_heads // parts
        return head, head + 1
    raise LayoutError(
        f"{num_kv_heads} key-value heads and tensor_parallel = {parts}: neither divides the other",
        f"choose a tensor_parallel that divides {num_kv_heads} or is a multiple of it",
    )


def scaled(part: Range, factor: int, offset: int = 0) -> Range:
    """The range in units of which each is `factor` long, behind `offset`."""
    return offset + part[0] * factor, offset + part[1] * factor


def split_layers(num_layers: int, stage_costs: Sequence[float], layer_cost: float) -> list[range]:
    """Deal consecutive layers to pipeline stages so that the dearest stage costs least.

    `stage_costs` is what each stage costs beside its layers (the head on the last one).
    """
    if num_layers < len(stage_costs):
        raise LayoutError(
            f"{num_layers} layers < pipeline_parallel = {len(stage_costs)}",
            f"choose pipeline_parallel of at most {num_layers}",
        )
    counts = [1] * len(stage_costs)
    for _ in range(num_layers - len(stage_costs)):
        costs = [count * layer_cost + own for count, own in zip(counts, stage_costs, strict=True)]
        counts[costs.index(min(costs))] += 1
    firsts = [sum(counts[:stage]) for stage in range(len(counts))]
    return [range(first, first + count) for first, count in zip(firsts, counts, strict=True)]
