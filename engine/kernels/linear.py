"""Linear layers whose bf16 weights are packed once, in the order in which the kernels read them."""

import torch
from torch import nn

from engine.kernels.library import Kernels, thread_count

_BLOCK = 32


def packed_size(num_outputs: int, num_inputs: int) -> int:
    """bf16 numbers in a packed weight: both sides padded to whole blocks of 32."""
    return -(-num_outputs // _BLOCK) * _BLOCK * (-(-num_inputs // _BLOCK) * _BLOCK)


class PackedLinear(nn.Module):
    """y = x W^T + b in bf16 on a CPU, accumulated in float32, rounded once to nearest even.

    A row's result does not depend on which rows are computed with it, nor on the number of threads.
    """

    packed: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, kernels: Kernels, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        if weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
            raise ValueError(f"only bf16 weights on a CPU can be packed, not {weight.dtype} on {weight.device}")
        self.out_features, self.in_features = weight.shape
        self.kernels = kernels
        packed = torch.empty(packed_size(*weight.shape), dtype=torch.bfloat16)
        source = weight.detach().contiguous()
        kernels.library.manta_pack_weight(packed.data_ptr(), source.data_ptr(), *weight.shape)
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.bfloat16), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]."""
        rows = x.reshape(-1, self.in_features)
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        out = torch.empty(rows.shape[0], self.out_features, dtype=torch.bfloat16)
        self.kernels.library.manta_linear(
            self.kernels.isa, thread_count(), out.data_ptr(), rows.data_ptr(), self.packed.data_ptr(),
            None if self.bias is None else self.bias.data_ptr(),
            rows.shape[0], self.out_features, self.in_features, rows.stride(0),
        )  # fmt: skip
        return out.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


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
