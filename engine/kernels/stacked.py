"""Projections of one input computed as one product: their weights are stacked, each module gets its columns."""

import torch
from torch import nn

from engine.kernels.library import Kernels
from engine.kernels.linear import PackedLinear


class StackedLinear:
    """One packed linear over several; remembers its last output until every part has taken its columns."""

    def __init__(self, kernels: Kernels, linears: list[nn.Linear]) -> None:
        bias = None
        if any(linear.bias is not None for linear in linears):
            bias = torch.cat([_bias(linear) for linear in linears])
        self.linear = PackedLinear(kernels, torch.cat([linear.weight for linear in linears]), bias)
        self._all_parts = (1 << len(linears)) - 1
        self._waiting = 0  # bit i: part i has not yet taken the last output
        self._input: torch.Tensor | None = None
        self._output: torch.Tensor | None = None

    def part(self, bit: int, x: torch.Tensor) -> torch.Tensor:
        """The whole product for x; computed anew unless x is the tensor just computed and the part's first call."""
        output = self._output
        if output is None or self._input is not x or not self._waiting & bit:
            output = self.linear.forward(x)
            self._input, self._output = x, output
            self._waiting = self._all_parts
        self._waiting &= ~bit
        if not self._waiting:
            self._input = self._output = None
        return output


class StackedPart(nn.Module):
    """Stands where one of the stacked linears stood."""

    def __init__(self, stacked: StackedLinear, index: int, start: int, out_features: int) -> None:
        super().__init__()
        self.stacked = stacked
        self.start, self.out_features = start, out_features
        self.in_features = stacked.linear.in_features
        self._bit = 1 << index
        if index == 0:
            self.linear = stacked.linear  # so that the model's tree holds the weights, once

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features], a view into the product of all parts."""
        return self.stacked.part(self._bit, x).narrow(-1, self.start, self.out_features)

    __call__ = forward  # without the look for hooks


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
