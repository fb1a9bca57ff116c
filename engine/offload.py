"""Loads a model whose layers wait outside the device's memory, for models larger than that.

Layer after layer is loaded, cut, fused and packed as ever, and its matrices are put into a store. In the model they
are then views of the slots of a `LayerStream`. Norms, biases, embedding and output layer stay on the device.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from engine.checkpoint import Checkpoint
from engine.config import EngineConfig, Offload
from engine.kernels.fuse import use_kernels
from engine.kernels.library import Kernels
from engine.kernels.linear import PackedLinear
from engine.layer_stream import FileStore, HostStore, LayerStore, LayerStream, make_slots, whole_pages
from engine.model_loader import LoadedModel, describe_model, load_module
from engine.rank_part import RankPart
from parallel.stage_cut import find_layer_list

log = logging.getLogger(__name__)

_CPU = torch.device("cpu")
_ALIGNMENT = 64  #: bytes; the kernels read whole cache lines


def load_offloaded(
    checkpoint: Checkpoint,
    described: Any,
    config: EngineConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    kernels: Kernels | None,
    part: RankPart,
) -> LoadedModel:
    """The model, or a rank's part of it, with its layers in the store that `config.offload` asks for."""
    store: LayerStore = HostStore() if config.offload is Offload.CPU else FileStore(config.offload_dir)
    places: list[tuple[nn.Module, list[_Matrix]]] = []
    module: Any = None
    numbers = range(1)
    while len(places) < len(numbers):
        piece = part.piece(len(places))
        loaded = load_module(checkpoint, described, dtype=dtype, device=_CPU, part=piece)
        part.take(piece)
        _leave_files(loaded)
        if kernels is not None:
            use_kernels(loaded, kernels)
        layers: Any = loaded.get_submodule(find_layer_list(loaded))
        if module is None:
            module, all_layers = loaded, layers
            numbers = range(len(layers)) if part.stage_cut is None else part.stage_cut.layers
        layer = all_layers[numbers[len(places)]] = layers[numbers[len(places)]]
        places.append((layer, _store_layer(layer, store)))
    _stream(places, store, device)
    log.info("the weights of %d layers wait outside the device (offload %s)", len(places), config.offload)
    return describe_model(
        checkpoint, described, module.to(device), dtype=dtype, device=device, part=part, has_streamed_layers=True
    )


def _leave_files(module: nn.Module) -> None:
    """Copy what stays of a layer: as views of the files, norms and biases would keep all that was read mapped."""
    for parameter in module.parameters():
        if parameter.ndim < 2:
            parameter.data = parameter.data.clone()


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A weight of a layer, and where it lies among the layer's bytes."""

    owner: nn.Module
    leaf: str
    like: torch.Tensor  #: of its shape and type, without memory
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.like.nbytes

    def place(self, memory: torch.Tensor) -> None:
        """Be a view of the layer's bytes from now on."""
        weight = memory[self.offset : self.end].view(self.like.dtype).view(self.like.shape)
        self._set(weight)

    def take_away(self) -> None:
        """Hold no memory."""
        self._set(self.like)

    def _set(self, weight: torch.Tensor) -> None:
        if isinstance(self.owner, PackedLinear):
            self.owner.read_from(weight)
        else:
            setattr(self.owner, self.leaf, nn.Parameter(weight, requires_grad=False))


def _store_layer(layer: nn.Module, store: LayerStore) -> list[_Matrix]:
    """Move the layer's matrices into the store."""
    matrices, end = [], 0
    found = list(_weights(layer))
    for owner, leaf in found:
        like = torch.empty_like(getattr(owner, leaf), device="meta", memory_format=torch.contiguous_format)
        matrices.append(_Matrix(owner, leaf, like, end))
        end = -(-matrices[-1].end // _ALIGNMENT) * _ALIGNMENT
    memory = torch.zeros(whole_pages(end), dtype=torch.uint8)
    for matrix in matrices:
        weight = getattr(matrix.owner, matrix.leaf).detach().contiguous()
        memory[matrix.offset : matrix.end].copy_(weight.view(-1).view(torch.uint8))
        matrix.take_away()
    store.add(memory)
    return matrices


def _weights(layer: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """What of a layer is worth moving: matrices, not norms and biases."""
    for owner in layer.modules():
        if isinstance(owner, PackedLinear):
            yield owner, "packed"
        else:
            yield from ((owner, leaf) for leaf, weight in owner.named_parameters(recurse=False) if weight.ndim >= 2)


def _stream(places: list[tuple[nn.Module, list[_Matrix]]], store: LayerStore, device: torch.device) -> None:
    """Give each layer its place in a slot, and have it filled before the layer computes."""
    slots = make_slots(store, max(whole_pages(matrices[-1].end) for _, matrices in places), device)
    stream = LayerStream(store, slots)
    for index, (layer, matrices) in enumerate(places):
        for matrix in matrices:
            matrix.place(slots[index % len(slots)])
        layer.register_forward_pre_hook(partial(_enter, stream, index))
        layer.register_forward_hook(partial(_leave, stream, index))


def _enter(stream: LayerStream, index: int, layer: nn.Module, inputs: object) -> None:
    stream.enter(index)


def _leave(stream: LayerStream, index: int, layer: nn.Module, inputs: object, output: object) -> None:
    stream.leave(index)
