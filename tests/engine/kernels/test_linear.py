"""Packed linears against float64, and their promise about rows and threads."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.kernels.library import Kernels
from engine.kernels.linear import Activation, PackedLinear, pack_linears

_SHAPES = [(1, 1), (33, 31), (96, 64), (100, 70), (257, 1024), (64, 2100)]
_ROWS = [1, 2, 5, 16, 17, 31, 32, 33, 64, 97, 700]


def _bf16(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize(("num_outputs", "num_inputs"), _SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_rounds_the_exact_sum(each_isa: Kernels, num_outputs: int, num_inputs: int, with_bias: bool) -> None:
    weight, x = _bf16(num_outputs, num_inputs), _bf16(max(_ROWS), num_inputs, seed=1)
    bias = _bf16(num_outputs, seed=2) if with_bias else None
    linear = PackedLinear(each_isa, weight, bias)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    got = linear(x)
    assert got.dtype is torch.bfloat16
    # half a unit in the last place of bf16, and what float32 sums lose
    torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=1e-4 * num_inputs**0.5)


@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(100, 70), (257, 1024)])
def test_a_row_does_not_depend_on_its_neighbours_or_threads(
    each_isa: Kernels, num_outputs: int, num_inputs: int
) -> None:
    x = _bf16(max(_ROWS), num_inputs)
    linear = PackedLinear(each_isa, _bf16(num_outputs, num_inputs, seed=1))
    everything = linear(x)
    for num_rows in _ROWS:
        assert torch.equal(linear(x[:num_rows]), everything[:num_rows])
    for threads in (2, 3, 64):
        torch.set_num_threads(threads)
        assert torch.equal(linear(x), everything)
        assert torch.equal(linear(x[:3]), everything[:3])


@pytest.mark.parametrize("activation", [Activation.SILU, Activation.GELU_TANH, Activation.GELU])
@pytest.mark.parametrize("num_rows", [1, 20, 80])
@pytest.mark.parametrize("width", [16, 40, 96])
def test_gate_and_up(each_isa: Kernels, activation: Activation, num_rows: int, width: int) -> None:
    functions = {
        Activation.SILU: F.silu,
        Activation.GELU_TANH: lambda v: F.gelu(v, approximate="tanh"),
        Activation.GELU: F.gelu,
    }
    weight, bias, x = _bf16(2 * width, 48), _bf16(2 * width, seed=1), _bf16(num_rows, 48, seed=2)
    gate, up = F.linear(x.float(), weight.float(), bias.float()).chunk(2, dim=-1)
    expected = functions[activation](gate) * up
    got = PackedLinear(each_isa, weight, bias, activation)(x)
    assert got.shape == (num_rows, width)
    torch.testing.assert_close(got.float(), expected, rtol=2**-6, atol=2e-3)


def test_any_leading_shape_and_strides(kernels: Kernels) -> None:
    linear = PackedLinear(kernels, _bf16(40, 64))
    x = _bf16(2, 3, 64, seed=1)
    flat = linear(x.view(6, 64))
    assert torch.equal(linear(x), flat.view(2, 3, 40))
    wide = torch.zeros(6, 200, dtype=torch.bfloat16)
    wide[:, 10:74] = x.view(6, 64)
    assert torch.equal(linear(wide[:, 10:74]), flat)
    assert torch.equal(linear(x.view(6, 64).t().contiguous().t()), flat)
    assert linear(x[:0]).shape == (0, 3, 40)


def test_nan_and_infinity_come_through(each_isa: Kernels) -> None:
    x = torch.ones(2, 64, dtype=torch.bfloat16)
    x[0, 3] = torch.nan
    x[1, 3] = torch.inf
    got = PackedLinear(each_isa, torch.ones(32, 64, dtype=torch.bfloat16))(x)
    assert got[0].isnan().all()
    assert got[1].isposinf().all()


def test_refuses_other_types_and_widths(kernels: Kernels) -> None:
    with pytest.raises(ValueError, match="only bf16"):
        PackedLinear(kernels, torch.ones(4, 4))
    linear = PackedLinear(kernels, _bf16(4, 8))
    with pytest.raises(ValueError, match=r"expected bf16 \[\.\.\., 8\]"):
        linear(torch.ones(1, 8))
    with pytest.raises(ValueError, match="expected bf16"):
        linear(_bf16(1, 9))


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32, dtype=torch.bfloat16)
        self.body = nn.Sequential(nn.Linear(32, 32, dtype=torch.bfloat16), nn.Linear(32, 32))
        self.head = nn.Linear(32, 50, bias=False, dtype=torch.bfloat16)
        self.head.weight = self.embed.weight


def test_pack_linears_leaves_embedding_and_float32(kernels: Kernels) -> None:
    model = _Tied()
    hidden = model.embed(torch.tensor([7]))
    expected = F.linear(hidden.float(), model.embed.weight.float())
    with torch.no_grad():
        assert pack_linears(model, kernels) == 2
        assert type(model.body[1]) is nn.Linear
        torch.testing.assert_close(model.head(hidden).float(), expected, rtol=2**-7, atol=1e-3)
        assert model.embed(torch.tensor([7])).equal(hidden)
    assert [name for name, _ in model.named_parameters()] == ["embed.weight", "body.1.weight", "body.1.bias"]
