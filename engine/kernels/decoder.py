"""All layers of a Llama-like decoder, or of a pipeline stage of one, as one call of the kernels, for steps of few rows.

Such a step is bound by reading the weights once. Between modules that compute one product each, Python and the start of
a parallel region cost a quarter to a half of it. `engine.decoder_trial` decides whether a model may run so.
"""

import ctypes
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from engine.kernels.elementwise import FusedRMSNorm
from engine.kernels.library import Kernels, thread_count
from engine.kernels.linear import PackedLinear
from engine.kernels.metadata import AttentionMetadata
from engine.kernels.mlp import FusedMLP
from engine.kernels.shared_group import SharedMemoryGroup
from engine.kernels.stacked import StackedPart
from parallel.sharded_layers import ReducedOutput, VocabParallelHead
from parallel.stage_cut import OtherStage, StageInput, StageOutput
from parallel.tensor_group import TensorGroup

#: Most tokens of a step that the fused decoder computes; kFewRows in native/few_rows.h.
MAX_ROWS = 64
_STEP_OF_INPUTS = 32


class HeadShape(NamedTuple):
    """Of every layer's attention."""

    query_heads: int
    kv_heads: int
    head_dim: int


class AttentionOptions(NamedTuple):
    """What one layer's attention computes."""

    scale: float
    sliding_window: int | None
    softcap: float | None


@dataclass(frozen=True)
class LayerParts:
    """The modules of one layer, in the order in which they compute."""

    attention_norm: FusedRMSNorm
    qkv: PackedLinear
    query_norm: FusedRMSNorm | None
    key_norm: FusedRMSNorm | None
    attention_out: PackedLinear
    mlp_norm: FusedRMSNorm
    mlp: FusedMLP

    def products(self) -> tuple[PackedLinear, ...]:
        """In order."""
        return self.qkv, self.attention_out, self.mlp.gate_up, self.mlp.down


@dataclass(frozen=True)
class DecoderParts:
    """The modules of a model, or of a pipeline stage of one; those that are not kernels' are called as they are."""

    embedding: nn.Module
    rotary: nn.Module
    layers: list[LayerParts]
    norm: FusedRMSNorm | None  #: it and the output layer are in the last stage
    output: PackedLinear | None
    stage_input: StageInput | None = None
    stage_output: StageOutput | None = None
    group: SharedMemoryGroup | None = None  #: of a tensor-parallel rank, whose attention and MLP give terms of sums
    head: VocabParallelHead | None = None  #: which joins the ranks' outputs

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.layers[0].attention_norm.weight.shape[0]


def find_parts(model: nn.Module) -> DecoderParts | None:
    """The parts of a model that is fused and packed; None where it does not consist of the known ones."""
    base = getattr(model, str(getattr(model, "base_model_prefix", "")), None)
    embedding, rotary = getattr(base, "embed_tokens", None), getattr(base, "rotary_emb", None)
    norm, output = getattr(base, "norm", None), getattr(model, "lm_head", None)
    head = output if isinstance(output, VocabParallelHead) else None
    output = output if head is None else head.columns
    stage_output = norm if isinstance(norm, StageOutput) else None
    if stage_output is not None:
        norm = output = None
    elif not (isinstance(norm, FusedRMSNorm) and isinstance(output, PackedLinear)):
        return None
    group = _find_group(model)
    is_joined = head is not None or stage_output is not None
    if not (group is None or isinstance(group, SharedMemoryGroup)) or (group is not None) > is_joined:
        return None
    modules = list(getattr(base, "layers", ()))
    layers = [_layer_parts(layer) for layer in modules if not isinstance(layer, OtherStage | StageInput)]
    found = [layer for layer in layers if layer is not None]
    if not (isinstance(embedding, nn.Module) and isinstance(rotary, nn.Module) and found and len(found) == len(layers)):
        return None
    products = [product for layer in found for product in layer.products()]
    if any(size % _STEP_OF_INPUTS for product in products for size in (product.in_features, product.out_features)):
        return None
    stage_input = next((module for module in modules if isinstance(module, StageInput)), None)
    return DecoderParts(embedding, rotary, found, norm, output, stage_input, stage_output, group, head)


def _find_group(model: nn.Module) -> TensorGroup | None:
    """Of a tensor-parallel rank."""
    return next((module.link.group for module in model.modules() if isinstance(module, ReducedOutput)), None)


def _term(module: object) -> object:
    """What a tensor-parallel rank computes of a sum; any other module itself."""
    return module.part if isinstance(module, ReducedOutput) else module


def _layer_parts(layer: nn.Module) -> LayerParts | None:
    attention = getattr(layer, "self_attn", None)
    first = getattr(attention, "q_proj", None)
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    parts = (
        getattr(layer, "input_layernorm", None),
        first.stacked.linear if isinstance(first, StackedPart) else None,
        *norms,
        _term(getattr(attention, "o_proj", None)),
        getattr(layer, "post_attention_layernorm", None),
        _term(getattr(layer, "mlp", None)),
    )
    kinds = (FusedRMSNorm, PackedLinear, FusedRMSNorm, FusedRMSNorm, PackedLinear, FusedRMSNorm, FusedMLP)
    for index, (part, kind) in enumerate(zip(parts, kinds, strict=True)):
        is_optional = index in (2, 3)
        if not (isinstance(part, kind) or (is_optional and part is None)):
            return None
    return LayerParts(*parts)  # type: ignore[arg-type]


def head_shape(parts: DecoderParts, kv_heads: int, head_dim: int) -> HeadShape | None:
    """The heads that the projections have; None where the sizes of all layers do not fit together."""
    query_width = parts.layers[0].attention_out.in_features
    hidden, qkv_width = parts.hidden_size, query_width + 2 * kv_heads * head_dim
    gated = parts.layers[0].mlp.down.in_features
    sizes = ((hidden, qkv_width), (query_width, hidden), (hidden, gated), (gated, hidden))
    for layer in parts.layers:
        norms = (layer.attention_norm, layer.mlp_norm)
        head_norms = [norm for norm in (layer.query_norm, layer.key_norm) if norm is not None]
        if (
            tuple((product.in_features, product.out_features) for product in layer.products()) != sizes
            or any(norm.weight.shape[0] != hidden for norm in norms)
            or any(norm.weight.shape[0] != head_dim for norm in head_norms)
        ):
            return None
    if parts.output is not None and parts.output.in_features != hidden:
        return None
    if query_width % (kv_heads * head_dim):
        return None
    return HeadShape(query_width // head_dim, kv_heads, head_dim)


class FusedDecoder:
    """Computes steps of up to `MAX_ROWS` tokens over one cache; the same numbers as the modules it was made from.

    `keys` and `values` are the layers' caches, [num_blocks, kv_heads, block_size, head_dim]; `ticks` counts the layers
    done, also while a step runs. Not thread-safe.
    """

    def __init__(
        self,
        kernels: Kernels,
        parts: DecoderParts,
        shape: HeadShape,
        options: list[AttentionOptions],
        keys: list[torch.Tensor],
        values: list[torch.Tensor],
        ticks: ctypes.c_int64,
    ) -> None:
        self._parts, self._memory = parts, (keys, values, ticks)  # what the structures point to
        self._head_dim = shape.head_dim
        self._run, self._isa = kernels.library.manta_decode, int(kernels.isa)
        first, hidden = parts.layers[0], parts.hidden_size
        widths = (
            hidden, first.qkv.out_features, first.attention_out.in_features, first.mlp.down.in_features, hidden,
        )  # fmt: skip
        self._rooms = [torch.zeros(MAX_ROWS, width, dtype=torch.bfloat16) for width in widths]
        windows = sorted({layer.sliding_window or 0 for layer in options})
        self._layers = (_Layer * len(options))(
            *(
                _layer(layer, wanted, key, value, windows)
                for layer, wanted, key, value in zip(parts.layers, options, keys, values, strict=True)
            )
        )
        self._decoder = _Decoder(
            ctypes.addressof(self._layers), len(options), len(windows), _norm(parts.norm), _product(parts.output),
            *(room.data_ptr() for room in self._rooms), ctypes.addressof(ticks), *shape, keys[0].shape[2],
            *(parts.group.seat if parts.group is not None else ()),
        )  # fmt: skip
        self._step = _Step()
        self._addresses = ctypes.addressof(self._decoder), ctypes.addressof(self._step)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        metadata: AttentionMetadata,
        slot_mapping: torch.Tensor,
        keep: torch.Tensor | None,
    ) -> torch.Tensor:
        """Logits [len(keep), vocabulary] for a flat batch of T tokens, T <= `MAX_ROWS`; `keep` None keeps all T.

        In a stage before the last, the hidden states that it has sent.
        """
        parts, step = self._parts, self._step
        num_rows = input_ids.shape[0]
        hidden: torch.Tensor = parts.embedding(input_ids)
        if parts.stage_input is not None:
            hidden = parts.stage_input(hidden)
        cos, sin = parts.rotary(hidden[None], positions[None])
        _check_step(num_rows, hidden, cos, sin, self._head_dim)
        if keep is None:
            keep = torch.arange(num_rows)
        width = 0 if parts.output is None else parts.output.out_features
        logits = torch.empty((keep.shape[0], width), dtype=torch.bfloat16)
        tables = metadata.block_tables
        step.hidden, step.cos, step.sin = hidden.data_ptr(), cos.data_ptr(), sin.data_ptr()
        step.slots, step.query_start = slot_mapping.data_ptr(), metadata.query_start.data_ptr()
        step.context_lens, step.block_tables = metadata.context_lens.data_ptr(), tables.data_ptr()
        step.kept, step.logits = keep.data_ptr(), logits.data_ptr()
        step.rows, step.num_kept = num_rows, keep.shape[0]
        step.num_sequences, step.table_stride = metadata.num_sequences, tables.stride(0)
        if parts.group is None:
            self._run(self._isa, thread_count(), *self._addresses)
        else:
            parts.group.begin("all_reduce between layers")
            parts.group.end(self._run(self._isa, thread_count(), *self._addresses))
        if parts.stage_output is not None:
            parts.stage_output(hidden)
            return hidden
        return logits if parts.head is None else parts.head.join(logits)


def _check_step(num_rows: int, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, head_dim: int) -> None:
    """The kernel reads these without looking."""
    if not 0 < num_rows <= MAX_ROWS:
        raise ValueError(f"{num_rows} rows: the fused decoder takes 1 to {MAX_ROWS}")
    if hidden.dtype is not torch.bfloat16 or not hidden.is_contiguous():
        raise ValueError(f"the embedding gives {hidden.dtype}, dense bfloat16 is needed")
    for angles in (cos, sin):
        if angles.dtype is not torch.bfloat16 or angles.shape != (1, num_rows, head_dim) or not angles.is_contiguous():
            raise ValueError(f"the rotary embedding gives {angles.dtype} {tuple(angles.shape)}")


class _Product(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("activation", ctypes.c_int64),
    )


class _Norm(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("dim", ctypes.c_int64),
        ("epsilon", ctypes.c_float),
        ("kind", ctypes.c_int32),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Norm) for name in ("attention_norm", "query_norm", "key_norm", "mlp_norm")),
        *((name, _Product) for name in ("query_key_value", "attention_out", "gate_up", "down")),
        ("key_cache", ctypes.c_void_p),
        ("value_cache", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("window", ctypes.c_int32),
        ("plan", ctypes.c_int32),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_void_p),
        ("num_layers", ctypes.c_int64),
        ("num_plans", ctypes.c_int64),
        ("last_norm", _Norm),
        ("output", _Product),
        *((name, ctypes.c_void_p) for name in ("normal", "heads", "attended", "gated", "delta", "ticks")),
        *((name, ctypes.c_int32) for name in ("query_heads", "kv_heads", "head_dim", "block_size")),
        ("group", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("rank", "ranks", "timeout_ms")),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("hidden", "cos", "sin", "slots", "query_start", "context_lens")),
        *((name, ctypes.c_void_p) for name in ("block_tables", "kept", "logits")),
        *((name, ctypes.c_int64) for name in ("rows", "num_kept", "num_sequences", "table_stride")),
    )


def _layer(
    parts: LayerParts, options: AttentionOptions, keys: torch.Tensor, values: torch.Tensor, windows: list[int]
) -> _Layer:
    window = options.sliding_window or 0
    norms = (parts.attention_norm, parts.query_norm, parts.key_norm, parts.mlp_norm)
    return _Layer(
        *(_norm(norm) for norm in norms), *(_product(product) for product in parts.products()),
        keys.data_ptr(), values.data_ptr(), options.scale, options.softcap or 0.0, window, windows.index(window),
    )  # fmt: skip


def _norm(norm: FusedRMSNorm | None) -> _Norm:
    if norm is None:
        return _Norm()
    return _Norm(norm.weight.data_ptr(), norm.weight.shape[0], norm.epsilon, int(norm.norm))


def _product(linear: PackedLinear | None) -> Any:
    if linear is None:
        return _Product()
    bias = None if linear.bias is None else linear.bias.data_ptr()
    return _Product(linear.packed.data_ptr(), bias, linear.in_features, linear.out_features, int(linear.activation))
