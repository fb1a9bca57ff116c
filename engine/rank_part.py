"""The part of a model that one rank of a replica holds: which layers, which slices, and what joins it to the others.

`cut` and the slices are for loading (`engine.model_loader`); `connect` follows when the rank has met its group.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from parallel.layout import RankLayout
from parallel.process_group import RankGroups
from parallel.stage_cut import (
    PipeLink,
    RehearsedPipe,
    StageCut,
    StagePipe,
    cut_stage,
    join_stage,
    leave_one_layer,
)
from parallel.tensor_cut import TensorCut, cut_tensors, join_layers, reduce_outputs
from parallel.tensor_group import GroupLink, Rehearsal


class RankPart:
    """Rank `rank` of `layout`. One use: it belongs to the one model that it has cut."""

    def __init__(self, layout: RankLayout, rank: int) -> None:
        self.layout, self.rank = layout, rank
        self._position = layout.position(rank)
        self._tensors = GroupLink(self._position.tp_rank, layout.tensor_parallel)
        self._pipe = PipeLink()
        self.tensor_cut = TensorCut(self._position.tp_rank, layout.tensor_parallel)
        self.stage_cut: StageCut | None = None
        self._piece: int | None = None
        self._is_summed = False

    @property
    def is_whole(self) -> bool:
        """One rank holds everything, all at once."""
        return self.layout.world_size == 1 and self._piece is None

    @property
    def computes_logits(self) -> bool:
        """This rank samples and answers: rank 0 of the last stage."""
        return self.layout.is_last_stage(self.rank) and self._position.tp_rank == 0

    def piece(self, index: int) -> "RankPart":
        """Layer `index` of this part alone, to be loaded by itself; the first comes with what is around the layers."""
        piece = copy.copy(self)
        piece._piece = index
        return piece

    def take(self, piece: "RankPart") -> None:
        """Own a piece that has been loaded; the first one first."""
        if piece._piece == 0:
            self.tensor_cut, self.stage_cut = piece.tensor_cut, piece.stage_cut
        else:
            self.tensor_cut.reduced += piece.tensor_cut.reduced

    def cut(self, model: Any) -> None:
        """Leave this rank's part of a model on the meta device. Raises `LayoutError`."""
        self.stage_cut = cut_stage(model, self.layout, self.rank)
        if self._piece is not None:
            leave_one_layer(model, self._piece)
        self.tensor_cut = cut_tensors(model, self.layout.tensor_parallel, self._position.tp_rank)

    def join(self, model: Any, dtype: torch.dtype, device: torch.device) -> None:
        """Put the modules in place that will speak to other ranks; they still rehearse."""
        join_layers(model, self.tensor_cut, self._tensors)
        join_stage(model, self.stage_cut, self._pipe, dtype, device)

    def connect(self, model: Any, groups: RankGroups) -> None:
        """From now on the model computes together with its group; after fusing and packing. Again after `let_go`."""
        if not self._is_summed:
            reduce_outputs(model, self.tensor_cut, self._tensors)
            self._is_summed = True
        if groups.tensor is not None:
            self._tensors.group = groups.tensor
        if groups.pipe is not None:
            self._pipe.pipe = groups.pipe

    def let_go(self) -> None:
        """The group is lost: hold it no longer, and rehearse until the next one."""
        self._tensors.group = Rehearsal(self._tensors.group.rank, self._tensors.group.size)
        self._pipe.pipe = RehearsedPipe()

    @contextmanager
    def beside(self, neighbours: StagePipe) -> Iterator[None]:
        """Meanwhile hidden states come from these and go to them, if this is a pipeline stage."""
        kept, self._pipe.pipe = self._pipe.pipe, neighbours
        try:
            yield
        finally:
            self._pipe.pipe = kept

    def agree(self, mine: bool) -> bool:
        """Whether all ranks of the stage say yes; they must ask together."""
        group = self._tensors.group
        return mine if group.size == 1 else float(group.all_reduce(torch.tensor([float(mine)]))[0]) == group.size
