"""Projections of one input computed as one product: their weights are stacked, each module gets its columns."""

import torch
from torch import nn

from engine.kernels.library import Kernels
from engine.kernels.linear import PackedLinear


class StackedLinear(nn.Module):
    """One packed linear over the stacked weights of several; remembers its last output until all parts took theirs."""

    def __init__(self, kernels: Kernels, linears: list[nn.Linear]) -> None:
        super().__init__()
        bias = None
        if any(linear.bias is not None for linear in linears):
            bias = torch.cat([_bias(linear) for linear in linears])
        self.linear = PackedLinear(kernels, torch.cat([linear.weight for linear in linears]), bias)
        self._waiting: set[int] = set()
        self._num_parts = len(linears)
        self._input: torch.Tensor | None = None
        self._output: torch.Tensor | None = None

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """The whole product for x; computed anew unless x is the tensor just computed and the part's first call."""
        output = self._output
        if output is None or self._input is not x or index not in self._waiting:
            output = self.linear(x)
            self._input, self._output = x, output
            self._waiting = set(range(self._num_parts))
        self._waiting.discard(index)
        if not self._waiting:
            self._input = self._output = None
        return output


class StackedPart(nn.Module):
    """Stands where one of the stacked linears stood."""

    def __init__(self, stacked: StackedLinear, index: int, start: int, out_features: int) -> None:
        super().__init__()
        self.stacked = stacked
        self.index = index
        self.start, self.out_features = start, out_features
        self.in_features = stacked.linear.in_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features], a view into the product of all parts."""
        return self.stacked.part(self.index, x).narrow(-1, self.start, self.out_features)


def stack_linears(kernels: Kernels, linears: list[nn.Linear]) -> list[StackedPart]:
    """One part for each linear, in order."""
    stacked = StackedLinear(kernels, linears)
    parts, start = [], 0
    for index, linear in enumerate(linears):
        parts.append(StackedPart(stacked, index, start, linear.out_features))
        start += linear.out_features
    return parts


def _bias(linear: nn.Linear) -> torch.Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
