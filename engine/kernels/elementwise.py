"""RMS norm and rotary position embedding as one kernel each, rounding where transformers' modules round."""

import enum
from collections.abc import Callable

import torch
from torch import nn

from engine.kernels.library import Kernels, thread_count

Rotary = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class Norm(enum.IntEnum):
    """Where the weight joins; the numbers are those of native/elementwise.cpp."""

    ROUND_THEN_SCALE = 0  #: weight * normal.to(dtype), as Llama
    SCALE_THEN_ROUND = 1  #: (weight * normal).to(dtype), as Olmo 2
    ONE_PLUS = 2  #: ((1 + weight) * normal).to(dtype), as Gemma


class FusedRMSNorm(nn.Module):
    """RMS norm over the last dimension of a bf16 or float32 tensor, the variance in float32."""

    def __init__(self, kernels: Kernels, weight: nn.Parameter, epsilon: float, norm: Norm) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon
        self.norm = norm
        self._dtype, self._dim = weight.dtype, weight.shape[0]
        self._weight_ptr = weight.data_ptr()
        self._norm_number = int(norm)
        self._is_bf16 = int(weight.dtype is torch.bfloat16)
        self._run = kernels.library.manta_rms_norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., dim] -> the same shape."""
        dim = self._dim
        if x.dtype is not self._dtype or x.shape[-1] != dim:
            raise ValueError(f"expected {self._dtype} [..., {dim}], got {x.dtype} {tuple(x.shape)}")
        rows = x.reshape(-1, dim)
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        out = torch.empty(x.shape, dtype=self._dtype)
        self._run(
            thread_count(), self._is_bf16, out.data_ptr(), rows.data_ptr(), self._weight_ptr,
            rows.shape[0], dim, rows.stride(0), self.epsilon, self._norm_number,
        )  # fmt: skip
        return out

    __call__ = forward  # without the look for hooks

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"{self.weight.shape[0]}, eps={self.epsilon}, {self.norm.name}"


def fused_rotary(kernels: Kernels, original: Rotary) -> Rotary:
    """`apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)` by a kernel; other shapes than ours go to `original`."""
    run = kernels.library.manta_rotary

    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        _, heads, tokens, dim = x.shape
        out = torch.empty((1, tokens, heads, dim), dtype=x.dtype)
        run(
            thread_count(), int(x.dtype is torch.bfloat16), out.data_ptr(), x.data_ptr(), cos.data_ptr(),
            sin.data_ptr(), tokens, heads, dim, x.stride(2), x.stride(1),
        )  # fmt: skip
        return out.transpose(1, 2)

    def apply_rotary_pos_emb(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if unsqueeze_dim == 1 and _rotates(q, cos, sin) and _rotates(k, cos, sin):
            return rotate(q, cos, sin), rotate(k, cos, sin)
        return original(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)

    return apply_rotary_pos_emb


def _rotates(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """x is [1, heads, T, dim] and cos and sin are dense [1, T, dim] of the same type."""
    return (
        x.dim() == 4
        and x.shape[0] == 1
        and x.stride(3) == 1
        and x.dtype in (torch.bfloat16, torch.float32)
        and x.dtype is cos.dtype
        and x.dtype is sin.dtype
        and cos.shape == sin.shape == (1, x.shape[2], x.shape[3])
        and cos.is_contiguous()
        and sin.is_contiguous()
    )
