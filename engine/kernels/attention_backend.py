"""What a paged-attention implementation offers, and which one a device gets.

A third implementation is one more file with a class of these two methods, and one more line in
`select_attention`.
"""

from collections.abc import Iterable
from typing import Protocol

import torch

from engine.kernels.attention import NativeAttention
from engine.kernels.library import Kernels
from engine.kernels.metadata import AttentionMetadata
from engine.kernels.torch_attention import TorchAttention


class AttentionBackend(Protocol):
    """Writes keys and values into the paged cache and attends to them."""

    @property
    def name(self) -> str:
        """For the log and for status."""

    def write_kv(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Store key and value [T, num_kv_heads, head_dim] in the slots of `slot_mapping` [T]."""

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
        """Causal attention of query [T, num_q_heads, head_dim] over the sequences' cached keys.

        Caches are [num_blocks, num_kv_heads, block_size, head_dim]. A `sliding_window` W hides the keys at
        `position - W` and before; `softcap` c makes a score c * tanh(score / c); `sinks` [num_q_heads] are
        logits that join the softmax's denominator only. Returns [T, num_q_heads, head_dim].
        """


def select_attention(
    kernels: Kernels | None, device: torch.device, dtype: torch.dtype, head_dims: Iterable[int]
) -> AttentionBackend:
    """The fastest implementation that runs here for layers with heads of these sizes."""
    if device.type == "cpu" and kernels is not None and all(NativeAttention.supports(dtype, dim) for dim in head_dims):
        return NativeAttention(kernels)
    return TorchAttention()
