"""Linear layers whose bf16 weights are packed once, in the order in which the kernels read them."""

import enum

import torch
from torch import nn

from engine.kernels.library import Kernels, thread_count

_BLOCK = 32


class Activation(enum.IntEnum):
    """What a gated MLP applies to its gate; the numbers are those of native/activation.h."""

    NONE = 0
    SILU = 1
    GELU_TANH = 2
    GELU = 3


class PackedLinear(nn.Module):
    """y = x W^T + b in bf16 on a CPU, accumulated in float32, rounded once to nearest even.

    With an activation, W holds the gate's rows and then the up projection's, and y = act(gate(x)) * up(x), rounded
    where the separate layers would round. A row's result depends neither on the rows computed with it nor on the
    number of threads.
    """

    packed: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        kernels: Kernels,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        activation: Activation = Activation.NONE,
    ) -> None:
        super().__init__()
        if weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
            raise ValueError(f"only bf16 weights on a CPU can be packed, not {weight.dtype} on {weight.device}")
        num_rows, self.in_features = weight.shape
        self.activation = activation
        self.out_features = num_rows if activation is Activation.NONE else num_rows // 2
        self._run = kernels.library.manta_linear
        self._activation = int(activation)
        self._isa = int(kernels.isa)
        gate_width = 0 if activation is Activation.NONE else self.out_features
        packed = _packed_weight(kernels, weight, gate_width)
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("bias", None if bias is None else _packed_bias(bias, gate_width), persistent=False)
        self._packed_ptr = packed.data_ptr()
        self._bias_ptr = None if self.bias is None else self.bias.data_ptr()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """bf16 [..., in_features] -> [..., out_features]."""
        shape = x.shape
        if x.dtype is not torch.bfloat16 or shape[-1] != self.in_features:
            raise ValueError(f"expected bf16 [..., {self.in_features}], got {x.dtype} {tuple(shape)}")
        rows = x.reshape(-1, self.in_features)
        num_rows, stride = rows.shape[0], rows.stride(0)
        if rows.stride(1) != 1:
            rows, stride = rows.contiguous(), self.in_features
        out = torch.empty((*shape[:-1], self.out_features), dtype=torch.bfloat16)
        self._run(
            self._isa, thread_count(), out.data_ptr(), rows.data_ptr(), self._packed_ptr, self._bias_ptr,
            num_rows, self.out_features, self.in_features, stride, self._activation,
        )  # fmt: skip
        return out

    def read_from(self, packed: torch.Tensor) -> None:
        """Take the packed weight from this place from now on; it has the old one's shape, and may be filled later."""
        self.packed, self._packed_ptr = packed, packed.data_ptr()

    __call__ = forward  # without the look for hooks, which costs more than a small product's own overhead

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, activation={self.activation.name}"


def _packed_weight(kernels: Kernels, weight: torch.Tensor, gate_width: int) -> torch.Tensor:
    num_rows, num_inputs = weight.shape
    blocks = -(-gate_width // (_BLOCK // 2)) if gate_width else -(-num_rows // _BLOCK)
    packed = torch.empty(blocks, -(-num_inputs // _BLOCK) * _BLOCK, _BLOCK, dtype=torch.bfloat16)
    source = weight.detach().contiguous()
    kernels.library.manta_pack_weight(packed.data_ptr(), source.data_ptr(), num_rows, num_inputs, gate_width)
    return packed


def _packed_bias(bias: torch.Tensor, gate_width: int) -> torch.Tensor:
    """float32, one for each packed column."""
    bias = bias.detach().float()
    parts = [bias[:gate_width], bias[gate_width:]] if gate_width else [bias]
    width = _BLOCK // len(parts)
    padded = [nn.functional.pad(part, (0, -len(part) % width)).view(-1, width) for part in parts]
    return torch.cat(padded, dim=1).flatten().contiguous()


def pack_linears(model: nn.Module, kernels: Kernels) -> int:
    """Replace every bf16 `nn.Linear` of the model by a packed one; returns how many.

    The original weights are freed as the walk goes; a weight that an embedding shares stays, since the embedding
    still reads it.
    """
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.dtype == torch.bfloat16 and child.weight.device.type == "cpu":
                setattr(parent, name, PackedLinear(kernels, child.weight, child.bias))
                replaced += 1
    return replaced
