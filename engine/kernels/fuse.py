"""Replaces parts of a model by fused kernels, found by structure and kept only if they compute the same.

No list of models: a class is tried once on random input against the module it would replace, and a difference
leaves every module of that class as it was. `pack_linears` takes what is left.
"""

import copy
import inspect
import logging
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from engine.kernels.elementwise import FusedRMSNorm, Norm, Rotary, fused_rotary
from engine.kernels.library import Kernels
from engine.kernels.linear import pack_linears
from engine.kernels.mlp import gated_mlp, is_packable
from engine.kernels.stacked import stack_linears

log = logging.getLogger(__name__)

_ROTARY = "apply_rotary_pos_emb"
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
#: Largest difference allowed, relative to the result's norm: the order of sums and one rounding to bf16.
_TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
#: Norms round element by element, so all but a few elements must be equal to tell their kinds apart.
_EQUAL_SHARE = 0.98


@dataclass
class FusionReport:
    """What was replaced, and what was left alone and why."""

    replaced: dict[str, int] = field(default_factory=dict)  #: kind -> modules
    refused: dict[str, str] = field(default_factory=dict)  #: "kind ClassName" -> reason

    def count(self, kind: str) -> None:
        """One more module of this kind."""
        self.replaced[kind] = self.replaced.get(kind, 0) + 1

    def refuse(self, kind: str, module: nn.Module, reason: str) -> None:
        """Modules of this class stay as they are."""
        self.refused[f"{kind} {type(module).__name__}"] = reason

    def allows(self, kind: str, module: nn.Module) -> bool:
        """Whether no module of this class has been refused."""
        return f"{kind} {type(module).__name__}" not in self.refused


def fuse_modules(model: nn.Module, kernels: Kernels) -> FusionReport:
    """Replace what matches a known structure and proves numerically equal; the model is changed in place."""
    report = FusionReport()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        _fuse_norms(model, kernels, report, generator)
        _fuse_mlps(model, kernels, report, generator)
        _stack_projections(model, kernels, report, generator)
        _fuse_rotary(model, kernels, report, generator)
    return report


def use_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Replace and pack whatever of a bf16 model on a CPU the kernels compute; the model is changed in place."""
    fused = fuse_modules(model, kernels)
    packed = pack_linears(model, kernels)
    log.info("packed %d linear layers, fused %s, left %s", packed, fused.replaced, fused.refused)


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]


def _fuse_norms(model: nn.Module, kernels: Kernels, report: FusionReport, generator: torch.Generator) -> None:
    kinds: dict[type[nn.Module], Norm] = {}
    for parent, name, child in _children(model):
        weight = getattr(child, "weight", None)
        epsilon = getattr(child, "variance_epsilon", getattr(child, "eps", None))
        if (
            not type(child).__name__.endswith("RMSNorm")
            or not _is_norm_weight(weight)
            or not isinstance(epsilon, float)
        ):
            continue
        if not report.allows("rms_norm", child):
            continue
        if type(child) not in kinds:
            kind = _norm_kind(child, epsilon, kernels, generator)
            if kind is None:
                report.refuse("rms_norm", child, "computes something else than the known norms")
                continue
            kinds[type(child)] = kind
        setattr(parent, name, FusedRMSNorm(kernels, weight, epsilon, kinds[type(child)]))
        report.count("rms_norm")


def _is_norm_weight(weight: object) -> TypeGuard[nn.Parameter]:
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or weight.device.type != "cpu":
        return False
    return weight.dtype in _TOLERANCE and weight.is_contiguous()


def _norm_kind(module: nn.Module, epsilon: float, kernels: Kernels, generator: torch.Generator) -> Norm | None:
    """Which norm the module computes, tried with random weights on a copy of it."""
    original = copy.deepcopy(module)
    weight = original.weight
    assert isinstance(weight, nn.Parameter)
    weight.copy_(_random(generator, weight.shape, weight.dtype) * 0.2 + 0.9)
    x = _random(generator, (64, weight.shape[0]), weight.dtype) * 2.0
    expected = _call(original, x)
    if expected is None:
        return None
    shares = {}
    for kind in Norm:
        got = FusedRMSNorm(kernels, weight, epsilon, kind)(x)
        if _close(got, expected):
            shares[kind] = float((got == expected).float().mean())
    best = max(shares, key=lambda kind: shares[kind], default=None)
    if best is None or (weight.dtype is torch.bfloat16 and shares[best] < _EQUAL_SHARE):
        return None
    return best


def _fuse_mlps(model: nn.Module, kernels: Kernels, report: FusionReport, generator: torch.Generator) -> None:
    proven: set[type[nn.Module]] = set()
    for parent, name, child in _children(model):
        if not report.allows("gated_mlp", child) or (fused := gated_mlp(child, kernels)) is None:
            continue
        if type(child) not in proven:
            x = _random(generator, (5, fused.gate_up.in_features), torch.bfloat16)
            expected = _call(child, x) if _takes_one_argument(child) else None
            if expected is None or not _close(fused(x), expected):
                report.refuse("gated_mlp", child, "computes something else than down(act(gate(x)) * up(x))")
                continue
            proven.add(type(child))
        setattr(parent, name, fused)
        report.count("gated_mlp")


def _stack_projections(model: nn.Module, kernels: Kernels, report: FusionReport, generator: torch.Generator) -> None:
    proven: set[type[nn.Module]] = set()
    for module in list(model.modules()):
        linears = [p for name in _PROJECTIONS if is_packable(p := getattr(module, name, None))]
        if len(linears) != len(_PROJECTIONS) or len({linear.in_features for linear in linears}) != 1:
            continue
        if not report.allows("stacked_qkv", module):
            continue
        parts = stack_linears(kernels, linears)
        if type(module) not in proven:
            x = _random(generator, (5, linears[0].in_features), torch.bfloat16)
            if not all(
                _close(part(x), F.linear(x, linear.weight, linear.bias))
                for part, linear in zip(parts, linears, strict=True)
            ):
                report.refuse("stacked_qkv", module, "the stacked product differs from the separate ones")
                continue
            proven.add(type(module))
        for name, part in zip(_PROJECTIONS, parts, strict=True):
            setattr(module, name, part)
        report.count("stacked_qkv")


def _fuse_rotary(model: nn.Module, kernels: Kernels, report: FusionReport, generator: torch.Generator) -> None:
    """Gives attention modules a copy of their class's `forward` that finds our rotary function under its name."""
    forwards: dict[type[nn.Module], Callable[..., Any]] = {}
    for module in model.modules():
        forward = type(module).forward
        if not isinstance(forward, types.FunctionType) or _ROTARY not in forward.__code__.co_names:
            continue
        if not report.allows("rotary", module) or hasattr(forward, "__wrapped__"):
            continue
        if type(module) not in forwards:
            original = forward.__globals__[_ROTARY]
            ours = fused_rotary(kernels, original)
            dtype = next((p.dtype for p in model.parameters()), torch.float32)
            if not _same_rotary(ours, original, dtype, generator):
                report.refuse("rotary", module, "rotates in another way")
                continue
            forwards[type(module)] = _with_global(forward, _ROTARY, ours)
        module.forward = types.MethodType(forwards[type(module)], module)
        report.count("rotary")


def _same_rotary(ours: Rotary, original: Rotary, dtype: torch.dtype, generator: torch.Generator) -> bool:
    parameters = list(inspect.signature(original).parameters)
    if parameters[:4] != ["q", "k", "cos", "sin"] or parameters[4:] != ["unsqueeze_dim"] or dtype not in _TOLERANCE:
        return False
    q, k = (_random(generator, (1, heads, 3, 64), dtype) for heads in (4, 2))
    cos, sin = (_random(generator, (1, 3, 64), dtype) for _ in range(2))
    try:
        expected = original(q, k, cos, sin)
    except RuntimeError:  # it wants cos and sin of another shape
        return False
    return all(_close(mine, theirs) for mine, theirs in zip(ours(q, k, cos, sin), expected, strict=True))


def _with_global(function: types.FunctionType, name: str, value: object) -> Callable[..., Any]:
    """The same code with one global name meaning something else."""
    changed = types.FunctionType(
        function.__code__, {**function.__globals__, name: value}, function.__name__, function.__defaults__,
        function.__closure__,
    )  # fmt: skip
    changed.__kwdefaults__ = function.__kwdefaults__
    return changed


def _random(generator: torch.Generator, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def _takes_one_argument(module: nn.Module) -> bool:
    return len(inspect.signature(module.forward).parameters) == 1


def _call(module: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """What a module of unknown kind makes of x; None where it wants something else."""
    try:
        y = module(x)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return None
    return y if isinstance(y, torch.Tensor) else None


def _close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    if got.shape != expected.shape or got.dtype is not expected.dtype:
        return False
    difference = (got.float() - expected.float()).norm()
    return bool(difference <= _TOLERANCE[got.dtype] * expected.float().norm())
