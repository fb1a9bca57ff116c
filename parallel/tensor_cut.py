"""Cuts a model into the parts of a tensor-parallel group, by the plan that its architecture carries.

The plan (`tp_plan`, from transformers) says which layers are split by columns and which by rows; how wide the parts
are follows from the layers' sizes and the number of heads. Two steps: `cut_tensors` while the model is still on the
meta device, so that a rank never holds more than its part, and `join_layers` once it is filled.
"""

import copy
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from parallel.auto_tp import auto_tp_plan
from parallel.layout import CannotSplit
from parallel.sharded_layers import GatheredNorm, ReducedOutput, VocabParallelEmbedding, VocabParallelHead
from parallel.tensor_group import GroupLink
from parallel.tensor_slice import Range, TensorSlice, deal, deal_heads, deal_kv_heads, deal_width, scaled

_COLUMNS = frozenset({"colwise", "colwise_gather_output"})
_ROWS = frozenset({"rowwise", "rowwise_split_input"})
_EXPERTS = "moe_tp_experts"
#: Styles that ask for nothing here: what every rank holds whole, and parameters of experts, cut with their module.
_PASSED_OVER = frozenset({"replicated_with_grad_allreduce", "packed_colwise", "grouped_gemm"})
_INTERLEAVED_EXPERTS = "interleaved_experts"
#: Plans for architectures that have none in transformers, by model type.
_OUR_PLANS = {
    "gpt_oss": {
        **{f"model.layers.*.self_attn.{name}_proj": "colwise" for name in "qkv"},
        "model.layers.*.self_attn.o_proj": "rowwise",
        "model.layers.*.mlp.experts": _INTERLEAVED_EXPERTS,
    }
}
_KEY_VALUE = frozenset({"k_proj", "v_proj"})
_KNOWN = _COLUMNS | _ROWS | _PASSED_OVER | {_EXPERTS, _INTERLEAVED_EXPERTS}
_ONE_RANK = "use tensor_parallel = 1"
#: Attributes in which attention modules remember how many heads they have.
_HEAD_COUNTS = ("num_heads", "num_attention_heads")


@dataclass
class TensorCut:
    """What `cut_tensors` did to a model."""

    rank: int
    size: int
    slices: dict[str, TensorSlice] = field(default_factory=dict)  #: parameter -> the part that is here
    zeroed: list[str] = field(default_factory=list)  #: biases of sums, which rank 0 adds alone
    reduced: list[str] = field(default_factory=list)  #: modules whose output is a term of a sum
    gathered_norms: dict[str, tuple[Range, int]] = field(default_factory=dict)  #: norm -> (part, copies)
    vocabulary: list[Range] = field(default_factory=list)  #: token ids of each rank's rows of the embedding and head


def cut_tensors(model: Any, size: int, rank: int) -> TensorCut:
    """Make every layer of the plan (on the meta device) as small as part `rank` of `size`. Raises `LayoutError`."""
    cut = TensorCut(rank, size)
    if size == 1:
        return cut
    styles = _planned_modules(model)
    _cut_vocabulary(model, cut)
    parents: dict[str, dict[str, str]] = {}
    for name, style in styles.items():
        parent, _, leaf = name.rpartition(".")
        parents.setdefault(parent, {})[leaf] = style
    for parent, leaves in parents.items():
        module = model.get_submodule(parent)
        if hasattr(module, "is_causal") or hasattr(module, "scaling"):
            _AttentionCut(cut, parent, module).run(leaves)
        else:
            _check_feed_forward(parent, module, leaves)
            _cut_feed_forward(cut, parent, module, leaves)
    return cut


def join_layers(model: Any, cut: TensorCut, link: GroupLink) -> None:
    """Put the modules around embedding, head and norms that make the parts a whole."""
    if cut.size == 1:
        return
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        _replace(model, _name_of(model, embedding), VocabParallelEmbedding(embedding, cut.vocabulary[cut.rank], link))
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        _replace(model, _name_of(model, head), VocabParallelHead(head, cut.vocabulary, link))
    for name in cut.zeroed:
        model.get_parameter(name).zero_()
    for name, (part, copies) in cut.gathered_norms.items():
        _replace(model, name, GatheredNorm(model.get_submodule(name), part, copies, link))


def reduce_outputs(model: Any, cut: TensorCut, link: GroupLink) -> None:
    """Sum the terms of the group: after fusing and packing, around whatever module now computes each term."""
    standing: dict[str, str] = {}
    for name in cut.reduced:
        found = name
        while not _has_module(model, found):
            found = found.rpartition(".")[0]
        if found in standing:
            raise CannotSplit(f"{standing[found]} and {name} are one module", "the sums between them are lost")
        standing[found] = name
    for name in standing:
        _replace(model, name, ReducedOutput(model.get_submodule(name), link))


def _planned_modules(model: Any) -> dict[str, str]:
    """Module (or parameter of experts) -> style, for everything the plan splits within the layers."""
    all_styles = {**_OUR_PLANS.get(model.config.model_type, {}), **(model.tp_plan or {})}
    plan = {name: style for name, style in all_styles.items() if ".layers." in f".{name}"} or auto_tp_plan(model)
    patterns = [(re.compile(re.escape(name).replace(r"\*", r"\d+")), style) for name, style in plan.items()]
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    styles = {}
    for name in names:
        for pattern, style in patterns:
            if pattern.fullmatch(name):
                styles[name] = style
                if style not in _KNOWN:
                    raise CannotSplit(f"the plan splits {name} by {style!r}, which is not known", _ONE_RANK)
    return styles


def _cut_vocabulary(model: Any, cut: TensorCut) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    layers = [layer for layer in (embedding, head) if isinstance(layer, nn.Embedding | nn.Linear)]
    for layer in layers:
        rows = layer.weight.shape[0]
        cut.vocabulary = [deal(rows, cut.size, rank) for rank in range(cut.size)]
        name = _name_of(model, layer)
        _cut_parameters(cut, name, layer, 0, (cut.vocabulary[cut.rank],))
        if isinstance(layer, nn.Embedding):
            layer.num_embeddings, layer.padding_idx = layer.weight.shape[0], None
    if len({layer.weight.shape[0] for layer in layers}) > 1:
        raise CannotSplit("embedding and output layer have different numbers of rows", _ONE_RANK)


class _AttentionCut:
    """Cuts one attention module: whole heads, fused projections part by part, a norm over all heads gathered."""

    def __init__(self, cut: TensorCut, name: str, module: Any) -> None:
        self._cut, self._name, self._module = cut, name, module
        head_dim = _head_dim(module)
        if head_dim is None:
            raise CannotSplit(f"{name} does not say how wide its heads are", _ONE_RANK)
        self._head_dim = head_dim
        config = module.config
        self._num_heads = int(config.num_attention_heads)
        self._num_kv_heads = int(getattr(config, "num_key_value_heads", None) or self._num_heads)

    def run(self, leaves: dict[str, str]) -> None:
        """Cut the projections that the plan names, then what follows from them."""
        for leaf, style in leaves.items():
            layer = getattr(self._module, leaf)
            if style in _COLUMNS:
                _cut_parameters(self._cut, f"{self._name}.{leaf}", layer, 0, self._columns(leaf, layer))
            elif style in _ROWS:
                heads = deal_heads(self._num_heads, self._cut.size, self._cut.rank)
                width = layer.weight.shape[1] // self._num_heads
                _cut_rows(self._cut, f"{self._name}.{leaf}", layer, scaled(heads, width))
        self._cut_norms()
        self._recount_heads()

    def _columns(self, leaf: str, layer: nn.Linear) -> tuple[Range, ...]:
        size, rank, width = self._cut.size, self._cut.rank, self._head_dim
        rows = layer.weight.shape[0]
        if leaf == "qkv_proj":
            queries, keys = self._num_heads * width, self._num_kv_heads * width
            if rows != queries + 2 * keys:
                raise CannotSplit(f"{self._name}.{leaf} has {rows} rows, not {queries} + 2 * {keys}", _ONE_RANK)
            kv = deal_kv_heads(self._num_kv_heads, size, rank)
            heads = scaled(deal_heads(self._num_heads, size, rank), width)
            return heads, scaled(kv, width, queries), scaled(kv, width, queries + keys)
        if leaf in _KEY_VALUE:
            return (scaled(deal_kv_heads(rows // width, size, rank), width),)
        if rows % self._num_heads:
            raise CannotSplit(f"{self._name}.{leaf} has {rows} rows for {self._num_heads} heads", _ONE_RANK)
        return (scaled(deal_heads(self._num_heads, size, rank), rows // self._num_heads),)

    def _cut_norms(self) -> None:
        for leaf, num_heads, part in (
            ("q_norm", self._num_heads, deal_heads(self._num_heads, self._cut.size, self._cut.rank)),
            ("k_norm", self._num_kv_heads, deal_kv_heads(self._num_kv_heads, self._cut.size, self._cut.rank)),
        ):
            norm = getattr(self._module, leaf, None)
            weight = getattr(norm, "weight", None)
            if weight is None or weight.shape == (self._head_dim,):
                continue
            name = f"{self._name}.{leaf}"
            if weight.shape == (num_heads, self._head_dim):
                _cut_parameters(self._cut, name, norm, 0, (part,))
            elif weight.shape == (num_heads * self._head_dim,):
                self._cut.gathered_norms[name] = (
                    scaled(part, self._head_dim),
                    max(1, self._cut.size // num_heads),
                )
            else:
                raise CannotSplit(f"{name} has a weight of shape {list(weight.shape)}", _ONE_RANK)

    def _recount_heads(self) -> None:
        """The module reads how many heads it has from its attributes or from its config."""
        size, module = self._cut.size, self._module
        local = dict.fromkeys(_HEAD_COUNTS, self._num_heads // size)
        local["num_key_value_heads"] = max(1, self._num_kv_heads // size)
        local["num_key_value_groups"] = local["num_heads"] // local["num_key_value_heads"]
        module.config = copy.copy(module.config)
        for name, count in local.items():
            if hasattr(module, name):
                setattr(module, name, count)
        for name in ("num_attention_heads", "num_key_value_heads"):
            if hasattr(module.config, name):
                setattr(module.config, name, local[name])
        if isinstance(sinks := getattr(module, "sinks", None), nn.Parameter):
            part = deal_heads(sinks.shape[0], size, self._cut.rank)
            _cut_parameter(self._cut, f"{self._name}.sinks", module, "sinks", TensorSlice(0, (part,)))


def _check_feed_forward(parent: str, module: Any, leaves: dict[str, str]) -> None:
    """Columns must make what rows take; something else is no feed-forward layer that is known here."""
    linears = {leaf: layer for leaf in leaves if isinstance(layer := getattr(module, leaf), nn.Linear)}
    widths = {layer.in_features for leaf, layer in linears.items() if leaves[leaf] in _ROWS}
    for leaf, layer in linears.items():
        if leaves[leaf] in _COLUMNS:
            widths.add(layer.out_features // (2 if leaf == "gate_up_proj" else 1))
    if len(widths) > 1 or (not any(leaves[leaf] in _ROWS for leaf in linears) and linears):
        raise CannotSplit(f"{parent} has layers of the widths {sorted(widths)}, split by columns and rows", _ONE_RANK)


def _cut_feed_forward(cut: TensorCut, parent: str, module: Any, leaves: dict[str, str]) -> None:
    """Any other module with split layers: the width between its columns and its rows is dealt out."""
    for leaf, style in leaves.items():
        name, layer = f"{parent}.{leaf}", getattr(module, leaf)
        if style == _EXPERTS:
            _cut_experts(cut, name, layer)
        elif style == _INTERLEAVED_EXPERTS:
            _cut_interleaved_experts(cut, name, layer)
        elif isinstance(layer, nn.Parameter) or (style not in _COLUMNS and style not in _ROWS):
            continue  # the parameters of experts, cut with them; what is replicated stays
        elif style in _ROWS:
            _cut_rows(cut, name, layer, deal_width(layer.weight.shape[1], cut.size, cut.rank))
        elif leaf == "gate_up_proj":
            half = layer.weight.shape[0] // 2
            part = deal_width(half, cut.size, cut.rank)
            _cut_parameters(cut, name, layer, 0, (part, scaled(part, 1, half)))
        else:
            _cut_parameters(cut, name, layer, 0, (deal_width(layer.weight.shape[0], cut.size, cut.rank),))


def _cut_experts(cut: TensorCut, name: str, experts: Any) -> None:
    """A part of each expert is here: gate and up [experts, 2 * width, hidden], down [experts, hidden, width]."""
    gate_up, down = getattr(experts, "gate_up_proj", None), getattr(experts, "down_proj", None)
    if not isinstance(gate_up, nn.Parameter) or not isinstance(down, nn.Parameter):
        raise CannotSplit(f"{name} does not hold its experts in two tensors", _ONE_RANK)
    width = down.shape[2]
    if gate_up.shape[1:] != (2 * width, down.shape[1]):
        raise CannotSplit(f"{name} holds tensors of {list(gate_up.shape)} and {list(down.shape)}", _ONE_RANK)
    part = deal_width(width, cut.size, cut.rank)
    _cut_parameter(cut, f"{name}.gate_up_proj", experts, "gate_up_proj", TensorSlice(1, (part, scaled(part, 1, width))))
    _cut_parameter(cut, f"{name}.down_proj", experts, "down_proj", TensorSlice(2, (part,)))
    _finish_experts(cut, name, experts, part)


def _cut_interleaved_experts(cut: TensorCut, name: str, experts: Any) -> None:
    """Gate and up in turn: [experts, hidden, 2 * width], down [experts, width, hidden], with biases."""
    part = deal_width(experts.down_proj.shape[1], cut.size, cut.rank)
    for leaf, cut_part in (
        ("gate_up_proj", TensorSlice(2, (scaled(part, 2),))),
        ("gate_up_proj_bias", TensorSlice(1, (scaled(part, 2),))),
        ("down_proj", TensorSlice(1, (part,))),
    ):
        _cut_parameter(cut, f"{name}.{leaf}", experts, leaf, cut_part)
    if cut.rank > 0:
        cut.zeroed.append(f"{name}.down_proj_bias")
    _finish_experts(cut, name, experts, part)


def _finish_experts(cut: TensorCut, name: str, experts: Any, part: Range) -> None:
    for count in ("intermediate_dim", "intermediate_size"):
        if hasattr(experts, count):
            setattr(experts, count, part[1] - part[0])
    cut.reduced.append(name)


def _cut_rows(cut: TensorCut, name: str, layer: nn.Linear, part: Range) -> None:
    """A linear that takes this part of the input: its output is a term, its bias belongs to rank 0."""
    _cut_parameter(cut, f"{name}.weight", layer, "weight", TensorSlice(1, (part,)))
    layer.in_features = layer.weight.shape[1]
    if layer.bias is not None and cut.rank > 0:
        layer.register_parameter("bias", None)
    cut.reduced.append(name)


def _cut_parameters(cut: TensorCut, name: str, layer: Any, dim: int, ranges: tuple[Range, ...]) -> None:
    """A layer that makes these parts of the output, with their biases."""
    for leaf, _ in list(layer.named_parameters(recurse=False)):
        _cut_parameter(cut, f"{name}.{leaf}", layer, leaf, TensorSlice(dim, ranges))
    if isinstance(layer, nn.Linear):
        layer.out_features = layer.weight.shape[0]


def _cut_parameter(cut: TensorCut, name: str, owner: nn.Module, leaf: str, part: TensorSlice) -> None:
    whole = getattr(owner, leaf)
    shape = [*whole.shape]
    shape[part.dim] = part.size
    setattr(owner, leaf, nn.Parameter(torch.empty(shape, dtype=whole.dtype, device=whole.device), False))
    cut.slices[name] = part


def _head_dim(module: Any) -> int | None:
    for name in ("head_dim", "head_size"):
        if isinstance(value := getattr(module, name, None), int):
            return value
    return None


def _name_of(model: Any, module: nn.Module) -> str:
    names: dict[str, nn.Module] = dict(model.named_modules())
    return next(name for name, candidate in names.items() if candidate is module)


def _has_module(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
