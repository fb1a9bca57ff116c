"""Fused norm and rotary against the formulas of transformers."""

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from engine.kernels.elementwise import FusedRMSNorm, Norm, fused_rotary
from engine.kernels.library import Kernels


def _expected(x: torch.Tensor, weight: torch.Tensor, epsilon: float, norm: Norm) -> torch.Tensor:
    wide = x.float()
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    if norm is Norm.ROUND_THEN_SCALE:
        return weight * normal.to(x.dtype)
    return (normal * (weight.float() + (1.0 if norm is Norm.ONE_PLUS else 0.0))).to(x.dtype)


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(1, 64), (3, 5, 896), (700, 100), (2, 7)])
def test_rms_norm(kernels: Kernels, norm: Norm, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 3).to(dtype)
    weight = nn.Parameter(torch.randn(shape[-1], generator=generator).to(dtype), requires_grad=False)
    got = FusedRMSNorm(kernels, weight, 1e-6, norm)(x)
    rtol = 2**-7 if dtype is torch.bfloat16 else 1e-6
    torch.testing.assert_close(got, _expected(x, weight, 1e-6, norm), rtol=rtol, atol=1e-6)
    if dtype is torch.bfloat16:
        assert (got == _expected(x, weight, 1e-6, norm)).float().mean() > 0.99


def test_rms_norm_of_a_view(kernels: Kernels) -> None:
    weight = nn.Parameter(torch.ones(32), requires_grad=False)
    norm = FusedRMSNorm(kernels, weight, 1e-6, Norm.ROUND_THEN_SCALE)
    x = torch.randn(6, 96)
    assert torch.equal(norm(x[:, 32:64]), norm(x[:, 32:64].contiguous()))
    heads = torch.randn(5, 4, 32).transpose(0, 1)
    assert torch.equal(norm(heads), norm(heads.contiguous()))
    with pytest.raises(ValueError, match=r"expected torch.float32 \[\.\.\., 32\]"):
        norm(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim", [8, 24, 64, 128])
@pytest.mark.parametrize("num_tokens", [1, 40])
def test_rotary(kernels: Kernels, dtype: torch.dtype, head_dim: int, num_tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(1, num_tokens, heads, head_dim, generator=generator).to(dtype).transpose(1, 2) for heads in (6, 2)
    )
    cos, sin = (torch.randn(1, num_tokens, head_dim, generator=generator).to(dtype) for _ in range(2))
    got = fused_rotary(kernels, apply_rotary_pos_emb)(q, k, cos, sin)
    for mine, theirs in zip(got, apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        rtol = 0.0 if dtype is torch.bfloat16 else 1e-5
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol)


def test_rotary_of_another_shape_goes_to_the_original(kernels: Kernels) -> None:
    q, k, cos, sin = torch.randn(2, 4, 3, 16), torch.randn(2, 4, 3, 16), torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    got = fused_rotary(kernels, apply_rotary_pos_emb)(q, k, cos, sin)
    assert torch.equal(got[0], apply_rotary_pos_emb(q, k, cos, sin)[0])
