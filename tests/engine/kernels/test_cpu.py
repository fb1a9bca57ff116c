"""The CPU's own description."""

import torch

from engine.kernels.cpu import cpu_flags, cpu_model, native_bf16


def test_flags_agree_with_torch() -> None:
    assert cpu_model()
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert "avx512f" in cpu_flags()
    if torch.cpu._is_amx_tile_supported():
        assert native_bf16()
