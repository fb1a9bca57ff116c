"""A gated MLP as two products: gate and up projections with their activation, then the down projection."""

from collections.abc import Callable
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

from engine.kernels.library import Kernels
from engine.kernels.linear import Activation, PackedLinear

_REFERENCES: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.GELU: F.gelu,
}


class FusedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) in bf16."""

    def __init__(
        self,
        kernels: Kernels,
        gate_up: torch.Tensor,
        gate_up_bias: torch.Tensor | None,
        down: nn.Linear,
        act: Activation,
    ) -> None:
        super().__init__()
        self.gate_up = PackedLinear(kernels, gate_up, gate_up_bias, act)
        self.down = PackedLinear(kernels, down.weight, down.bias)
        self._gate_up, self._down = self.gate_up.forward, self.down.forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> [..., hidden]."""
        return self._down(self._gate_up(x))

    __call__ = forward  # without the look for hooks


def gated_mlp(module: nn.Module, kernels: Kernels) -> FusedMLP | None:
    """The same MLP fused, where the module has the parts of one (separate or joined gate and up projections)."""
    down = getattr(module, "down_proj", None)
    if not is_packable(down) or (activation := _activation(module)) is None:
        return None
    joined = getattr(module, "gate_up_proj", None)
    if is_packable(joined):
        return FusedMLP(kernels, joined.weight, joined.bias, down, activation)
    gate, up = getattr(module, "gate_proj", None), getattr(module, "up_proj", None)
    if not (is_packable(gate) and is_packable(up)) or gate.weight.shape != up.weight.shape:
        return None
    biases: list[torch.Tensor] = [linear.bias for linear in (gate, up) if linear.bias is not None]
    if len(biases) == 1:
        return None
    bias = torch.cat(biases) if biases else None
    return FusedMLP(kernels, torch.cat([gate.weight, up.weight]), bias, down, activation)


def is_packable(module: object) -> TypeGuard[nn.Linear]:
    """A plain bf16 `nn.Linear` on a CPU."""
    return type(module) is nn.Linear and module.weight.dtype is torch.bfloat16 and module.weight.device.type == "cpu"


def _activation(module: nn.Module) -> Activation | None:
    """Which of ours the module's activation is, by what it computes."""
    function = next((f for n in ("act_fn", "activation_fn", "act") if callable(f := getattr(module, n, None))), None)
    if function is None:
        return None
    x = torch.linspace(-8.0, 8.0, 257)
    for activation, reference in _REFERENCES.items():
        if torch.allclose(function(x), reference(x), rtol=0.0, atol=1e-6):
            return activation
    return None
