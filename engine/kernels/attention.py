"""Paged attention by the C++ kernels, for CPUs."""

import torch

from engine.kernels.library import Kernels, thread_count
from engine.kernels.metadata import AttentionMetadata

_MAX_HEAD_DIM = 256


class NativeAttention:
    """Attends in bf16 or float32, accumulating in float32.

    A row's result does not depend on the batch, on how its prompt was cut into chunks, or on the number of threads.
    """

    name = "native"

    @staticmethod
    def supports(dtype: torch.dtype, head_dim: int) -> bool:
        """Whether the kernels take such heads; `TorchAttention` takes any."""
        return dtype in (torch.bfloat16, torch.float32) and head_dim % 8 == 0 and head_dim <= _MAX_HEAD_DIM

    def __init__(self, kernels: Kernels) -> None:
        self._library = kernels.library
        self._isa = int(kernels.isa)

    def write_kv(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Store key and value [T, num_kv_heads, head_dim] in the slots of `slot_mapping` [T]; a slot of -1 skips."""
        num_tokens, num_heads, head_dim = key.shape
        _check_cache(key_cache, value_cache, key)
        key, value = _dense_heads(key), _dense_heads(value)
        self._library.manta_write_kv(
            _is_bf16(key), key.data_ptr(), value.data_ptr(), key_cache.data_ptr(), value_cache.data_ptr(),
            slot_mapping.data_ptr(), num_tokens, key.stride(0), value.stride(0), num_heads, key_cache.shape[2],
            head_dim,
        )  # fmt: skip

    def paged_attention(
        self,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        metadata: AttentionMetadata,
        *,
        scale: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `AttentionBackend.paged_attention`; head_dim is a multiple of 8 up to 256."""
        _check_cache(key_cache, value_cache, query)
        query = _dense_heads(query)
        num_tokens, num_heads, head_dim = query.shape
        _, num_kv_heads, block_size, _ = key_cache.shape
        if num_heads % num_kv_heads:
            raise ValueError(f"{num_heads} query heads do not divide among {num_kv_heads} key heads")
        sinks = None if sinks is None else sinks.detach().float().contiguous()
        tables = metadata.block_tables
        out = torch.empty((num_tokens, num_heads, head_dim), dtype=query.dtype)
        self._library.manta_attention(
            self._isa, thread_count(), _is_bf16(query), out.data_ptr(), query.data_ptr(),
            key_cache.data_ptr(), value_cache.data_ptr(), metadata.query_start.data_ptr(),
            metadata.context_lens.data_ptr(), tables.data_ptr(), None if sinks is None else sinks.data_ptr(),
            metadata.num_sequences, query.stride(0), tables.stride(0), num_heads,
            num_kv_heads, block_size, head_dim, scale, softcap or 0.0, sliding_window or 0,
        )  # fmt: skip
        return out


def _is_bf16(tensor: torch.Tensor) -> int:
    return int(tensor.dtype is torch.bfloat16)


def _dense_heads(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied unless each token's heads lie one after the other."""
    if tensor.stride(2) == 1 and tensor.stride(1) == tensor.shape[2]:
        return tensor
    return tensor.contiguous()


def _check_cache(key_cache: torch.Tensor, value_cache: torch.Tensor, tokens: torch.Tensor) -> None:
    dtype, head_dim = tokens.dtype, tokens.shape[-1]
    if dtype not in (torch.bfloat16, torch.float32) or key_cache.dtype is not dtype:
        raise ValueError(f"attention runs in bf16 or float32 throughout, not {dtype} over a {key_cache.dtype} cache")
    if head_dim % 8 or head_dim > _MAX_HEAD_DIM or key_cache.shape != value_cache.shape:
        raise ValueError(f"head_dim must be a multiple of 8 up to {_MAX_HEAD_DIM} and equal for keys and values")
    if not (key_cache.is_contiguous() and value_cache.is_contiguous() and key_cache.shape[3] == head_dim):
        raise ValueError(f"the cache must be contiguous with head_dim {head_dim}, got {tuple(key_cache.shape)}")
