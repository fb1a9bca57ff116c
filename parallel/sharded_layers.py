"""Modules that stand around a rank's parts of a layer and make them a whole with those of its group.

The parts themselves stay what they were (`nn.Linear`, `nn.Embedding`, a norm) with smaller weights, so that whatever
packs or fuses ordinary modules packs and fuses these.
"""

from typing import Any

import torch
from torch import nn

from parallel.tensor_group import GroupLink
from parallel.tensor_slice import Range


class VocabParallelEmbedding(nn.Module):
    """An embedding of which each rank holds the rows of some token ids."""

    def __init__(self, rows: nn.Module, ids: Range, link: GroupLink) -> None:
        super().__init__()
        self.rows = rows
        self._start, self._end = ids
        self._link = link

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [...] -> [..., hidden], the same at all ranks."""
        elsewhere = (token_ids < self._start) | (token_ids >= self._end)
        embedded: torch.Tensor = self.rows((token_ids - self._start).masked_fill(elsewhere, 0))
        return self._link.group.all_reduce(embedded.masked_fill(elsewhere[..., None], 0.0))


class VocabParallelHead(nn.Module):
    """An output layer of which each rank computes the scores of some token ids; the group's rank 0 gets them all."""

    def __init__(self, columns: nn.Module, parts: list[Range], link: GroupLink) -> None:
        super().__init__()
        self.columns = columns
        self._widths = [end - start for start, end in parts]
        self._link = link

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., vocabulary] at rank 0, [..., 0] at the others."""
        return self.join(self.columns(hidden))

    def join(self, part: torch.Tensor) -> torch.Tensor:
        """This rank's columns [..., part] -> the same."""
        missing = max(self._widths) - part.shape[-1]  # parts of one shape are gathered
        parts = self._link.group.gather(nn.functional.pad(part, (0, missing)) if missing else part)
        if parts is None:
            return part[..., :0]
        return torch.cat([part[..., :width] for part, width in zip(parts, self._widths, strict=True)], dim=-1)


class ReducedOutput(nn.Module):
    """A module whose output is this rank's term of a sum over the group."""

    def __init__(self, part: nn.Module, link: GroupLink) -> None:
        super().__init__()
        self.part = part
        self.link = link

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What the part takes; the sum over the group."""
        return self.link.group.all_reduce(self.part(*args, **kwargs))


class GatheredNorm(nn.Module):
    """A norm over the width of all heads together, of which each rank has some: gathered, normalised, cut again."""

    def __init__(self, norm: nn.Module, part: Range, copies: int, link: GroupLink) -> None:
        super().__init__()
        self.norm = norm
        self._start, self._end = part
        self._copies = copies  # neighbouring ranks that hold the same heads
        self._link = link

    def forward(self, part: torch.Tensor) -> torch.Tensor:
        """[..., this rank's width] -> the same, normalised over the whole width."""
        parts = self._link.group.all_gather(part.contiguous())[:: self._copies]
        whole: torch.Tensor = self.norm(torch.cat(parts, dim=-1))
        return whole[..., self._start : self._end]
