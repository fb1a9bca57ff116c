"""Which attention a device gets, and what is said where kernels cannot be had."""

import logging

import pytest
import torch

from engine.kernels import library
from engine.kernels.attention import NativeAttention
from engine.kernels.attention_backend import select_attention
from engine.kernels.build import CompilerMissing
from engine.kernels.library import Kernels
from engine.kernels.torch_attention import TorchAttention


def test_selection(kernels: Kernels) -> None:
    cpu, bf16 = torch.device("cpu"), torch.bfloat16
    assert isinstance(select_attention(kernels, cpu, bf16, {64, 128}), NativeAttention)
    assert isinstance(select_attention(None, cpu, bf16, {64}), TorchAttention)
    assert isinstance(select_attention(kernels, torch.device("cuda"), bf16, {64}), TorchAttention)
    assert isinstance(select_attention(kernels, cpu, torch.float16, {64}), TorchAttention)
    assert isinstance(select_attention(kernels, cpu, bf16, {64, 512}), TorchAttention)
    assert isinstance(select_attention(kernels, cpu, bf16, {20}), TorchAttention)


def test_without_a_compiler_it_says_so_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def no_compiler() -> None:
        raise CompilerMissing("g++", "install g++")

    monkeypatch.setattr(library, "build", no_compiler)
    monkeypatch.delenv("MANTA_KERNELS", raising=False)
    library._load.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert library.load_kernels() is None
            assert library.load_kernels() is None
    finally:
        library._load.cache_clear()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "install g++" in caplog.text
