"""Fills a rank's part of a model straight from the safetensors files: what another rank holds is never read.

transformers' own loader maps the names and merges what a model merges (experts). It is given, for each tensor of the
checkpoint, an object that reads this rank's slice when the loader asks for its values.
"""

from contextlib import ExitStack
from typing import Any

import torch
from safetensors import safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from engine.checkpoint import Checkpoint
from engine.errors import UnsupportedArchitecture
from engine.rank_part import RankPart
from parallel.tensor_slice import Range, TensorSlice


class SlicedWeights(dict[str, Any]):
    """Name in the checkpoint -> `_Slice`; what belongs to other ranks is taken out when the model has been cut."""

    def __init__(self, checkpoint: Checkpoint, part: RankPart, files: ExitStack) -> None:
        super().__init__()
        self._checkpoint, self._part = checkpoint, part
        files.callback(self.clear)  # each slice holds its file, and classes (`sliced_class`) live until the next sweep
        for file in checkpoint.weight_files:
            opened = files.enter_context(safe_open(file, framework="pt"))
            self.update({name: _Slice(opened.get_slice(name)) for name in opened.keys()})  # noqa: SIM118

    def cut(self, model: Any) -> None:
        """Cut the model (on the meta device) and, with it, every tensor that will fill it."""
        mapping = get_model_conversion_mapping(model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        whole = model.state_dict()
        self._part.cut(model)
        mine = model.state_dict().keys()
        for source in sorted(self, key=dot_natural_key):
            target, pattern = rename_source_key(source, renamings, converters, model.base_model_prefix, whole)
            if target not in whole and source in whole:
                target, pattern = source, None
            if target in whole and target not in mine:
                del self[source]
            elif (part := self._part.tensor_cut.slices.get(target)) is not None:
                self[source].part = part if pattern is None else self._before_merging(source, pattern, part, converters)

    def _before_merging(
        self, source: str, pattern: str, part: TensorSlice, converters: list[WeightConverter]
    ) -> TensorSlice:
        """The slice of one expert's tensor, of which all experts' are stacked (and gate and up joined) afterwards."""
        converter = next(entry for entry in converters if pattern in entry.source_patterns)
        dim, ranges = part.dim, part.ranges
        for operation in reversed(converter.operations):
            if isinstance(operation, Concatenate) and operation.dim == dim:
                num_sources = len(converter.source_patterns)
                ranges = _joined(ranges, num_sources, converter.source_patterns.index(pattern))
            elif isinstance(operation, MergeModulelist) and operation.dim == 0 and dim > 0:
                dim -= 1
            else:
                raise UnsupportedArchitecture(
                    self._checkpoint.name,
                    f"{source} is converted by {type(operation).__name__} when it is loaded, which cannot be cut: "
                    "use tensor_parallel = 1",
                )
        return TensorSlice(dim, ranges)


class _Slice:
    """One tensor in a file, of which `part` will be read."""

    def __init__(self, stored: Any) -> None:
        self._stored = stored
        self.part: TensorSlice | None = None

    def __getitem__(self, _all: object) -> torch.Tensor:
        """The loader asks for `[...]`."""
        if self.part is None:
            whole: torch.Tensor = self._stored[...]
            return whole
        before = (slice(None),) * self.part.dim
        parts = [self._stored[(*before, slice(start, end))] for start, end in self.part.ranges]
        return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim=self.part.dim)

    def get_shape(self) -> list[int]:
        """As it stands in the file."""
        shape: list[int] = self._stored.get_shape()
        return shape

    def get_dtype(self) -> str:
        """As it stands in the file."""
        dtype: str = self._stored.get_dtype()
        return dtype


def _joined(ranges: tuple[Range, ...], num_sources: int, index: int) -> tuple[Range, ...]:
    """What of source `index` goes into `ranges` of all sources joined: they are cut alike, one range of each."""
    (first, end), *_ = ranges
    if len(ranges) != num_sources:
        raise ValueError(f"{len(ranges)} ranges of {num_sources} joined tensors")
    return ((first, end),)


def sliced_class(model_class: Any, weights: SlicedWeights) -> Any:
    """The architecture's class, whose instances are cut as soon as they are built, before they are filled."""

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        weights.cut(self)

    names = {"__init__": build, "__module__": model_class.__module__, "__qualname__": model_class.__qualname__}
    return type(model_class.__name__, (model_class,), names)
