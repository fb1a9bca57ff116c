"""The C++ attention against torch's operations in float32."""

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.kernels.attention import NativeAttention
from engine.kernels.library import Isa, Kernels
from engine.kernels.torch_attention import TorchAttention
from tests.engine.kernels.paged_batch import Heads, PagedBatch, make_batch

_ATOL = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
_MIXED = [(1, 1), (1, 130), (37, 37), (5, 700), (0, 9), (70, 129)]


def _run(backend: NativeAttention | TorchAttention, batch: PagedBatch, **options: object) -> torch.Tensor:
    scale = batch.query.shape[-1] ** -0.5
    return backend.paged_attention(
        batch.query, batch.key_cache, batch.value_cache, batch.metadata, scale=scale, **options
    )


def _reference(batch: PagedBatch, **options: object) -> torch.Tensor:
    wide = PagedBatch(batch.query.float(), batch.key_cache.float(), batch.value_cache.float(), batch.metadata)
    return _run(TorchAttention(), wide, **options)


@pytest.mark.parametrize("head_dim", [8, 40, 64, 80, 96, 128, 256])
def test_bf16_matches_reference_on_every_instruction_set(each_isa: Kernels, head_dim: int) -> None:
    batch = make_batch(_MIXED, Heads(6, 2, head_dim), block_size=16, dtype=torch.bfloat16)
    got = _run(NativeAttention(each_isa), batch)
    torch.testing.assert_close(got.float(), _reference(batch), rtol=0.0, atol=_ATOL[torch.bfloat16])


@st.composite
def _spans(draw: st.DrawFn) -> list[tuple[int, int]]:
    contexts = draw(st.lists(st.integers(1, 620), min_size=1, max_size=5))
    return [(draw(st.integers(1, min(context, 90))), context) for context in contexts]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spans=_spans(),
    num_kv=st.integers(1, 3),
    group=st.integers(1, 9),
    head_dim=st.sampled_from([8, 16, 24, 64, 72, 128]),
    block_size=st.sampled_from([1, 5, 16, 32, 128]),
    window=st.none() | st.integers(1, 300),
    softcap=st.none() | st.sampled_from([2.0, 30.0]),
    with_sinks=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_batch_matches_reference(
    kernels: Kernels,
    spans: list[tuple[int, int]],
    num_kv: int,
    group: int,
    head_dim: int,
    block_size: int,
    window: int | None,
    softcap: float | None,
    with_sinks: bool,
    dtype: torch.dtype,
) -> None:
    batch = make_batch(spans, Heads(num_kv * group, num_kv, head_dim), block_size=block_size, dtype=dtype)
    options = {
        "sliding_window": window,
        "softcap": softcap,
        "sinks": torch.linspace(-2.0, 2.0, num_kv * group) if with_sinks else None,
    }
    got = _run(NativeAttention(kernels), batch, **options)
    torch.testing.assert_close(got.float(), _reference(batch, **options), rtol=0.0, atol=_ATOL[dtype])


@pytest.mark.parametrize("window", [None, 200])
def test_a_row_does_not_depend_on_batch_chunk_or_threads(each_isa: Kernels, window: int | None) -> None:
    backend = NativeAttention(each_isa)
    batch = make_batch([(130, 1200), (1, 1100), (64, 64)], Heads(4, 2, 64), block_size=32, dtype=torch.bfloat16)
    together = _run(backend, batch, sliding_window=window)
    for threads in (2, 3, 16):
        torch.set_num_threads(threads)
        assert torch.equal(_run(backend, batch, sliding_window=window), together)
    torch.set_num_threads(1)
    for sequence, cuts in enumerate([(0, 1, 77, 129, 130), (0, 1), (0, 63, 64)]):
        start = batch.metadata.spans[sequence].start
        for first, end in pairwise(cuts):
            alone = _run(backend, batch.subset(sequence, first, end), sliding_window=window)
            assert torch.equal(alone, together[start + first : start + end])


def test_splitting_a_long_context_changes_nothing(kernels: Kernels) -> None:
    one = make_batch([(1, 5000)], Heads(8, 1, 64), block_size=32, dtype=torch.bfloat16)
    many = make_batch([(1, 5000)] + [(1, 1)] * 80, Heads(8, 1, 64), block_size=32, dtype=torch.bfloat16)
    backend = NativeAttention(kernels)
    alone = _run(backend, PagedBatch(one.query, many.key_cache, many.value_cache, _first(many)))
    query = torch.cat([one.query, many.query[1:]])
    crowd = _run(backend, PagedBatch(query, many.key_cache, many.value_cache, many.metadata))
    assert torch.equal(alone[0], crowd[0])


def _first(batch: PagedBatch) -> object:
    return batch.subset(0, 0, 1).metadata


def test_strided_query_and_keys(kernels: Kernels) -> None:
    """What stacked projections give: each token's heads dense, tokens far apart."""
    batch = make_batch([(20, 60)], Heads(4, 2, 32), block_size=16, dtype=torch.bfloat16)
    backend = NativeAttention(kernels)
    stacked = torch.cat([batch.query.flatten(1), torch.zeros(20, 64, dtype=torch.bfloat16)], dim=1)
    view = stacked[:, :128].view(20, 4, 32)
    strided = PagedBatch(view, batch.key_cache, batch.value_cache, batch.metadata)
    assert torch.equal(_run(backend, strided), _run(backend, batch))
    assert torch.equal(
        _run(
            backend,
            PagedBatch(
                view.transpose(0, 1).contiguous().transpose(0, 1), batch.key_cache, batch.value_cache, batch.metadata
            ),
        ),
        _run(backend, batch),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_write_kv_stores_what_torch_stores(kernels: Kernels, dtype: torch.dtype) -> None:
    tokens = torch.randn(7, 5, 24).to(dtype)
    key, value = tokens[:, :2], tokens[:, 2:4]
    slots = torch.tensor([0, 31, 17, 64, 65, 8, 79])
    native, reference = (torch.zeros(2, 5, 2, 16, 24, dtype=dtype) for _ in range(2))
    NativeAttention(kernels).write_kv(key, value, native[0], native[1], slots)
    TorchAttention().write_kv(key, value, reference[0], reference[1], slots)
    assert torch.equal(native, reference)
    assert native.count_nonzero() == 2 * 7 * 2 * 24


def test_refuses_what_the_kernel_cannot_read(kernels: Kernels) -> None:
    backend = NativeAttention(kernels)
    batch = make_batch([(1, 4)], Heads(4, 2, 16), block_size=4, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="bf16 or float32"):
        _run(backend, PagedBatch(batch.query.half(), batch.key_cache, batch.value_cache, batch.metadata))
    with pytest.raises(ValueError, match="do not divide"):
        _run(backend, PagedBatch(batch.query[:, :3], batch.key_cache, batch.value_cache, batch.metadata))
    wide = make_batch([(1, 4)], Heads(1, 1, 264), block_size=4, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="up to 256"):
        _run(backend, wide)


def test_isa_cannot_be_raised(kernels: Kernels) -> None:
    if kernels.isa is Isa.AMX:
        kernels = kernels.with_isa(Isa.GENERIC)
    with pytest.raises(ValueError, match="has no AMX"):
        kernels.with_isa(Isa.AMX)
