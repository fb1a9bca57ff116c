"""Cuts a model into pipeline stages, by the plan that its architecture carries.

A stage keeps the model's own forward: layers of other stages become modules that hand on what they get, and where the
first layer of the stage would read the layer before it, that module gives what the stage before has sent instead.
So scales and masks that a model applies around its layers stay in its own code.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from parallel.layout import CannotSplit, RankLayout
from parallel.tensor_slice import split_layers


class StagePipe(Protocol):
    """The way of hidden states from stage to stage."""

    def receive(self, hidden: torch.Tensor) -> torch.Tensor:
        """Fill `hidden` with what the previous stage has sent."""

    def send(self, hidden: torch.Tensor) -> None:
        """Send to the next stage."""


class RehearsedPipe:
    """No neighbours yet: nothing comes, nothing goes."""

    def receive(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `StagePipe`."""
        return hidden

    def send(self, hidden: torch.Tensor) -> None:
        """See `StagePipe`."""


class PipeLink:
    """Through it the ends of a stage find their pipe."""

    def __init__(self) -> None:
        self.pipe: StagePipe = RehearsedPipe()


class OtherStage(nn.Module):
    """A layer or norm of another stage: hands on what it gets."""

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The first argument."""
        return hidden


class StageInput(nn.Module):
    """In the place of the layer before this stage's first: gives what the previous stage has sent."""

    def __init__(self, link: PipeLink) -> None:
        super().__init__()
        self._link = link

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Hidden states of the shape of the argument, whose values mean nothing."""
        return self._link.pipe.receive(torch.empty_like(hidden, memory_format=torch.contiguous_format))


class StageOutput(nn.Module):
    """In the place of the last norm: sends the hidden states to the next stage."""

    def __init__(self, link: PipeLink) -> None:
        super().__init__()
        self._link = link

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Its argument."""
        self._link.pipe.send(hidden)
        return hidden


class NoEmbedding(nn.Module):
    """In the place of the embedding on later stages: zeros of its shape and type."""

    def __init__(self, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(1, dtype=dtype, device=device), persistent=False)
        self._hidden_size = hidden_size

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Token ids [...] -> [..., hidden]."""
        zero = self.get_buffer("zero")
        return zero.expand(*token_ids.shape, self._hidden_size)


@dataclass(frozen=True)
class StageCut:
    """One stage of a model: its layers and the names of the modules at its ends."""

    layers: range
    is_first: bool
    is_last: bool
    embedding: str
    layer_list: str
    norm: str


def cut_stage(model: Any, layout: RankLayout, rank: int) -> StageCut | None:
    """Take the layers of other stages out of a model on the meta device; None with one stage. Raises `LayoutError`."""
    if layout.pipeline_parallel == 1:
        return None
    cut = plan_stage(model, layout, rank)
    layers = model.get_submodule(cut.layer_list)
    for index in range(len(layers)):
        if index not in cut.layers:
            layers[index] = OtherStage()
    if not cut.is_last:
        _replace(model, cut.norm, OtherStage())
        head = model.get_output_embeddings()
        _replace(model, next(name for name, module in model.named_modules() if module is head), OtherStage())
    shares_head = cut.is_last and bool(model.all_tied_weights_keys)
    if not cut.is_first and not shares_head:
        _replace(model, cut.embedding, OtherStage())
    if not (cut.is_last and shares_head):
        model.all_tied_weights_keys = {}
    return cut


def find_layer_list(model: Any) -> str:
    """Name of the list that holds the model's layers. Raises `LayoutError`."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return str(name)
    raise CannotSplit(f"{type(model).__name__} does not hold its layers in one list", "use offload none")


def leave_one_layer(model: Any, index: int) -> None:
    """Of a model on the meta device leave layer `index` (counted among those here); with the first, what is around."""
    layers = model.get_submodule(find_layer_list(model))
    here = [number for number, layer in enumerate(layers) if not isinstance(layer, OtherStage)]
    for number in here:
        if number != here[index]:
            layers[number] = OtherStage()
    if index > 0:
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            _replace(model, next(name for name, module in model.named_modules() if module is end), OtherStage())
        model.all_tied_weights_keys = {}


def join_stage(model: Any, cut: StageCut | None, link: PipeLink, dtype: torch.dtype, device: torch.device) -> None:
    """Put the stage's input and output in their places, once the model is filled."""
    if cut is None:
        return
    if not cut.is_first:
        _replace(model, cut.embedding, NoEmbedding(model.config.hidden_size, dtype, device))
        model.get_submodule(cut.layer_list)[cut.layers.start - 1] = StageInput(link)
    if not cut.is_last:
        _replace(model, cut.norm, StageOutput(link))


def plan_stage(model: Any, layout: RankLayout, rank: int) -> StageCut:
    """What `cut_stage` will do to a whole model. Raises `LayoutError`."""
    plan = getattr(model.config, "base_model_pp_plan", None)
    if not plan or "layers" not in plan:
        raise CannotSplit(
            f"{type(model).__name__} has no pipeline parallel plan in transformers", "run it with pipeline_parallel = 1"
        )
    prefix = model.base_model_prefix
    if not hasattr(model.base_model, "layers"):
        raise CannotSplit(f"{type(model).__name__} does not hold its layers in one list", "use pipeline_parallel = 1")
    embedding = next(name for name, (takes, _) in plan.items() if "input_ids" in takes)
    layers = model.get_submodule(f"{prefix}.layers")
    head = model.get_output_embeddings()
    head_cost = float(head.weight.numel()) if head is not None else 0.0
    layer_cost = sum(parameter.numel() for parameter in layers.parameters()) / len(layers)
    own_costs = [0.0] * (layout.pipeline_parallel - 1) + [head_cost]  # looking up an embedding takes no time
    stage = layout.position(rank).pp_rank
    return StageCut(
        layers=split_layers(len(layers), own_costs, layer_cost)[stage],
        is_first=layout.is_first_stage(rank),
        is_last=layout.is_last_stage(rank),
        embedding=f"{prefix}.{embedding}",
        layer_list=f"{prefix}.layers",
        norm=f"{prefix}.{list(plan)[-1]}",
    )


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
