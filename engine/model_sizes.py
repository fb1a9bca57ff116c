"""Measures how large a model's parts are, by cutting it as loading does, on the meta device: no weight is read."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from torch import nn

from engine.checkpoint import Checkpoint
from engine.errors import UnsupportedArchitecture
from engine.model_loader import position_limit
from parallel.layout import LayoutError, RankLayout
from parallel.part_sizes import LayerSize, ModelSizes, PartSizes
from parallel.stage_cut import plan_stage
from parallel.tensor_cut import TensorCut, cut_tensors

_LAYER = re.compile(r"(.+?)\.(\d+)\.")
_HEAD_WIDTHS = ("qk_head_dim", "head_dim", "head_size", "attention_head_size")


def measure_model(
    checkpoint: Checkpoint,
    config: Any,
    dtype: torch.dtype,
    *,
    tensor_sizes: Iterable[int] = (1,),
    stage_counts: Iterable[int] = (1,),
) -> ModelSizes:
    """The sizes under each `tensor_parallel` and `pipeline_parallel` asked for; `config` is the transformers config.

    Layers whose attention is not recognised are not told apart: then a part has no layers, and only its bytes are true.
    """
    whole = _build(checkpoint, config, dtype)
    splits, pipeline_refusals = _split(whole, stage_counts)
    parts, tensor_refusals = {}, {}
    for size in tensor_sizes:
        try:
            parts[size] = _measure_part(_build(checkpoint, config, dtype), size)
        except LayoutError as error:
            tensor_refusals[size] = str(error)
    return ModelSizes(
        name=checkpoint.name,
        architecture=checkpoint.architecture,
        dtype=str(dtype).removeprefix("torch."),
        dtype_bytes=dtype.itemsize,
        hidden_size=int(config.hidden_size),
        vocab_size=int(config.vocab_size),
        position_limit=position_limit(checkpoint, config),
        num_parameters=sum(parameter.numel() for parameter in whole.parameters()),
        is_tied=bool(whole.all_tied_weights_keys),
        expert_share=_expert_share(whole),
        parts=parts,
        splits=splits,
        tensor_refusals=tensor_refusals,
        pipeline_refusals=pipeline_refusals,
    )


def _build(checkpoint: Checkpoint, config: Any, dtype: torch.dtype) -> Any:
    try:
        with torch.device("meta"):
            return getattr(transformers, checkpoint.architecture)._from_config(config, dtype=dtype)
    except ImportError as error:
        raise UnsupportedArchitecture(checkpoint.name, f"needs a package that is not installed: {error}") from error


def _split(model: Any, stage_counts: Iterable[int]) -> tuple[dict[int, tuple[range, ...]], dict[int, str]]:
    """Layers of each stage, and why there cannot be so many stages."""
    splits: dict[int, tuple[range, ...]] = {}
    refusals = {}
    for count in stage_counts:
        try:
            if count == 1:
                splits[count] = (range(len(_attentions(model))),)
            else:
                layout = RankLayout(1, count)
                splits[count] = tuple(plan_stage(model, layout, stage).layers for stage in range(count))
        except LayoutError as error:
            refusals[count] = str(error)
    return splits, refusals


def _measure_part(model: Any, size: int) -> PartSizes:
    """Rank 0's part of a fresh model: what does not divide evenly goes to the first ranks."""
    names = {id(module): name for name, module in model.named_modules()}
    ends = {
        "embedding": names[id(model.get_input_embeddings())],
        "head": names[id(model.get_output_embeddings())],
        "norm": _last_norm(model),
    }
    tied = set(model.all_tied_weights_keys)
    attentions = _attentions(model)
    layer_list = next((name for name, _ in attentions.values()), "")
    cut = cut_tensors(model, size, 0)
    held: Counter[str] = Counter()
    experts: Counter[int] = Counter()
    widest = 0
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in tied or tensor.ndim == 0:
            continue
        layer = _layer_of(name, layer_list)
        place = next((end for end, module in ends.items() if module and name.startswith(f"{module}.")), "elsewhere")
        held[place if layer is None else f"layer {layer}"] += tensor.nbytes
        if layer is not None and tensor.ndim >= 2:
            widest = max(widest, *tensor.shape[-2:])
            experts[layer] += tensor.nbytes if tensor.ndim == 3 else 0
    sums = _sums_by_layer(cut, layer_list)
    layers = tuple(
        LayerSize(held[f"layer {index}"], experts[index], *_attention_widths(module), sums[index])
        for index, (_, module) in sorted(attentions.items())
    )
    return PartSizes(layers, held["embedding"], held["head"], held["norm"], held["elsewhere"], widest)


def _last_norm(model: Any) -> str:
    """Empty where no plan names it: such a model has one stage, which holds everything."""
    try:
        return plan_stage(model, RankLayout(1, 2), 0).norm
    except LayoutError:
        return ""


def _attentions(model: Any) -> dict[int, tuple[str, Any]]:
    """Layer -> (name of the list of layers, its attention module)."""
    found = {}
    for name, module in model.named_modules():
        match = _LAYER.match(name)
        if match and getattr(module, "layer_idx", None) is not None and _head_width(module) is not None:
            found[int(match[2])] = (match[1], module)
    return found


def _head_width(module: Any) -> int | None:
    widths = (getattr(module, name, None) for name in _HEAD_WIDTHS)
    return next((width for width in widths if isinstance(width, int)), None)


def _attention_widths(module: Any) -> tuple[int, int]:
    """Bytes of a token's keys and values, and numbers in its queries, of a module that has been cut."""
    width = _head_width(module)
    assert width is not None
    config = module.config
    num_heads = int(getattr(module, "num_heads", None) or config.num_attention_heads)
    if isinstance(keys := getattr(module, "k_proj", None), nn.Linear):
        num_kv_heads = keys.out_features // width
    elif hasattr(module, "num_key_value_heads") or hasattr(module, "num_key_value_groups"):
        num_kv_heads = int(getattr(module, "num_key_value_heads", None) or config.num_key_value_heads)
    else:
        num_kv_heads = num_heads
    itemsize = next(module.parameters()).dtype.itemsize
    return 2 * num_kv_heads * width * itemsize, num_heads * width


def _layer_of(name: str, layer_list: str) -> int | None:
    match = _LAYER.match(name)
    return int(match[2]) if match and match[1] == layer_list else None


def _sums_by_layer(cut: TensorCut, layer_list: str) -> Counter[int]:
    layers = (_layer_of(f"{name}.", layer_list) for name in cut.reduced)
    return Counter(layer for layer in layers if layer is not None)


def _expert_share(model: Any) -> float:
    """Experts that a token goes through, of all."""
    counts = [tensor.shape[0] for tensor in model.parameters() if tensor.ndim == 3]
    chosen = getattr(model.config, "num_experts_per_tok", None) or getattr(model.config, "top_k", None)
    return int(chosen) / max(counts) if counts and isinstance(chosen, int) else 1.0
