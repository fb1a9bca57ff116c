"""Fusion by structure: what is replaced computes the same, what only looks alike is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from engine.kernels.fuse import fuse_modules
from engine.kernels.library import Kernels
from engine.kernels.linear import pack_linears

_SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _model(model_type: str) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **_SIZES)
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(0.5, 0.2)
    return model


@pytest.mark.parametrize(
    ("model_type", "replaced"),
    [
        ("llama", {"rms_norm": 5, "gated_mlp": 2, "stacked_qkv": 2, "rotary": 2}),
        ("qwen3", {"rms_norm": 9, "gated_mlp": 2, "stacked_qkv": 2, "rotary": 2}),
        ("gemma2", {"rms_norm": 9, "gated_mlp": 2, "stacked_qkv": 2, "rotary": 2}),
        ("olmo2", {"rms_norm": 9, "gated_mlp": 2, "stacked_qkv": 2, "rotary": 2}),
        ("phi3", {"rms_norm": 5, "gated_mlp": 2, "rotary": 2}),
        ("cohere", {"gated_mlp": 2, "stacked_qkv": 2}),
    ],
)
def test_models_compute_the_same(kernels: Kernels, model_type: str, replaced: dict[str, int]) -> None:
    model = _model(model_type)
    exact = copy.deepcopy(model).float()
    ids = torch.randint(3, 160, (1, 19), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference = exact(ids, use_cache=False).logits
        before = model(ids, use_cache=False).logits.float()
        report = fuse_modules(model, kernels)
        pack_linears(model, kernels)
        after = model(ids, use_cache=False).logits.float()
    assert report.replaced == replaced
    # Fused, the model is as near to float32 as it was before.
    assert (after - reference).norm() <= 1.2 * (before - reference).norm()


def test_a_packed_model_holds_its_weights_once(kernels: Kernels) -> None:
    model = _model("llama")
    size = sum(p.numel() for p in model.parameters())
    fuse_modules(model, kernels)
    pack_linears(model, kernels)
    tensors = {t.data_ptr(): t.numel() for t in [*model.parameters(), *model.buffers()]}
    assert sum(tensors.values()) <= 1.02 * size


class _OddMLP(nn.Module):
    """Looks gated, but adds."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (
            nn.Linear(32, 32, bias=False, dtype=torch.bfloat16) for _ in range(3)
        )
        self.act_fn = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))
        return down


class _OddRMSNorm(nn.Module):
    """Named like a norm, but takes the mean away."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32, dtype=torch.bfloat16))
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (32,), self.weight, eps=self.eps)


def test_what_only_looks_alike_is_refused(kernels: Kernels) -> None:
    model = nn.Sequential(_OddMLP(), _OddRMSNorm())
    report = fuse_modules(model, kernels)
    assert report.replaced == {}
    assert sorted(report.refused) == ["gated_mlp _OddMLP", "rms_norm _OddRMSNorm"]
    assert isinstance(model[0], _OddMLP)
    assert isinstance(model[1], _OddRMSNorm)


class _Projections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(32, 48, dtype=torch.bfloat16)
        self.k_proj = nn.Linear(32, 16, bias=False, dtype=torch.bfloat16)
        self.v_proj = nn.Linear(32, 16, dtype=torch.bfloat16)


def test_stacked_parts_in_any_order_and_number(kernels: Kernels) -> None:
    module = _Projections()
    plain = copy.deepcopy(module)
    fuse_modules(module, kernels)
    x, y = (torch.randn(3, 32).bfloat16() for _ in range(2))
    with torch.no_grad():
        for name, value in [("q", x), ("k", x), ("k", x), ("v", y), ("q", y), ("v", x), ("q", x), ("k", x), ("v", x)]:
            part = getattr(module, f"{name}_proj")
            linear = getattr(plain, f"{name}_proj")
            torch.testing.assert_close(part(value), linear(value), rtol=2**-6, atol=1e-2)


def test_a_changed_input_is_computed_anew(kernels: Kernels) -> None:
    module = _Projections()
    fuse_modules(module, kernels)
    x = torch.randn(3, 32).bfloat16()
    first = [getattr(module, f"{name}_proj")(x).clone() for name in "qkv"]
    x.mul_(2.0)
    second = [getattr(module, f"{name}_proj")(x) for name in "qkv"]
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
