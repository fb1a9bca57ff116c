"""The bridge between transformers' models and our paged attention: an entry in its `AttentionInterface`.

A model built with `attn_implementation=ATTENTION_NAME` calls `attend` in every layer. What that call works on
travels in the forward's keyword arguments (`model(..., attention_step=...)`), so nothing global holds a step.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface

from engine.errors import UnsupportedArchitecture
from engine.kernels.attention_backend import AttentionBackend
from engine.kernels.metadata import AttentionMetadata
from engine.kv_cache import KVCache
from engine.step_progress import StepProgress

ATTENTION_NAME = "manta_paged"


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """What one layer asks of attention beside its tensors."""

    scale: float
    sliding_window: int | None
    softcap: float | None
    sinks: torch.Tensor | None


class AttentionStep(Protocol):
    """Answers the attention calls of one forward pass."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: LayerOptions
    ) -> torch.Tensor:
        """Query [T, num_q_heads, head_dim], key and value [T, num_kv_heads, head_dim] -> the shape of query."""


@dataclass(frozen=True, slots=True)
class PagedStep:
    """Stores the step's keys and values in the paged cache and attends to what each sequence has there."""

    backend: AttentionBackend
    cache: KVCache
    metadata: AttentionMetadata
    slot_mapping: torch.Tensor  #: int64 [T]; block_id * block_size + offset, where each token's key and value go
    progress: StepProgress

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: LayerOptions
    ) -> torch.Tensor:
        """See `AttentionStep`."""
        self.progress.tick()
        index = layer - self.cache.first_layer
        key_cache, value_cache = self.cache.keys[index], self.cache.values[index]
        self.backend.write_kv(key, value, key_cache, value_cache, self.slot_mapping)
        attended = self.backend.paged_attention(
            query,
            key_cache,
            value_cache,
            self.metadata,
            scale=options.scale,
            sliding_window=options.sliding_window,
            softcap=options.softcap,
            sinks=options.sinks,
        )
        self.progress.tick()
        return attended


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    attention_step: AttentionStep | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers' layers call: tensors are [1, heads, T, head_dim], the answer [1, T, heads, head_dim]."""
    if attention_step is None:
        raise UnsupportedArchitecture(type(module).__name__, "its layers do not hand keyword arguments on to attention")
    if attention_mask is not None or others.get("position_bias") is not None:
        raise UnsupportedArchitecture(type(module).__name__, "its attention adds a mask or a bias of its own")
    if not getattr(module, "is_causal", True):
        raise UnsupportedArchitecture(type(module).__name__, "its attention is bidirectional")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    value_dim = value.shape[-1]
    head_dim = max(query.shape[-1], value_dim)  # zeros fill the shorter: they add nothing to scores, nor to sums
    attended = attention_step.attend(
        module.layer_idx,  # type: ignore[arg-type]
        _by_token(query, head_dim),
        _by_token(key, head_dim),
        _by_token(value, head_dim),
        LayerOptions(scale, sliding_window, softcap, s_aux),
    )
    return attended[..., :value_dim].unsqueeze(0), None


def _by_token(heads: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[1, heads, T, dim] -> [T, heads, head_dim], filled up with zeros."""
    tokens = heads[0].transpose(0, 1)
    missing = head_dim - tokens.shape[-1]
    return F.pad(tokens, (0, missing)) if missing else tokens


def register_attention() -> None:
    """Make `ATTENTION_NAME` known to transformers. It has no mask function there, so models build no mask."""
    AttentionInterface.register(ATTENTION_NAME, attend)
