"""Paged attention from torch's own operations: for machines without a compiler, for GPUs, for tests."""

import torch
import torch.nn.functional as F

from engine.kernels.metadata import AttentionMetadata, SequenceSpan


class TorchAttention:
    """Gathers each sequence's keys and attends to them, one sequence after the other."""

    name = "torch"

    def write_kv(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Store key and value [T, num_kv_heads, head_dim] in the slots of `slot_mapping` [T]."""
        block_size = key_cache.shape[2]
        block_ids = torch.div(slot_mapping, block_size, rounding_mode="floor")
        offsets = slot_mapping % block_size
        key_cache[block_ids, :, offsets] = key
        value_cache[block_ids, :, offsets] = value

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
        """See `AttentionBackend.paged_attention`."""
        output = torch.empty_like(query)
        for index, span in enumerate(metadata.spans):
            if span.query_len == 0:
                continue
            tokens = slice(span.start, span.start + span.query_len)
            keys = _gather(key_cache, metadata.block_tables[index], span.context_len)
            values = _gather(value_cache, metadata.block_tables[index], span.context_len)
            visible = _visible(span, sliding_window, query.device)
            rows = _group_rows(query[tokens], keys.shape[0])
            if softcap is None and sinks is None:
                attended = F.scaled_dot_product_attention(
                    rows[None],
                    keys[None],
                    values[None],
                    attn_mask=visible.repeat(rows.shape[1] // span.query_len, 1),
                    scale=scale,
                )[0]
            else:
                attended = _explicit(rows, keys, values, visible, scale=scale, softcap=softcap, sinks=sinks)
            output[tokens] = _ungroup_rows(attended, span.query_len)
        return output


def _gather(cache: torch.Tensor, block_table: torch.Tensor, context_len: int) -> torch.Tensor:
    """The first `context_len` entries of a sequence: [num_kv_heads, context_len, head_dim]."""
    block_size = cache.shape[2]
    blocks = cache[block_table[: -(-context_len // block_size)].long()]
    return blocks.transpose(0, 1).flatten(1, 2)[:, :context_len]


def _visible(span: SequenceSpan, sliding_window: int | None, device: torch.device) -> torch.Tensor:
    """bool [query_len, context_len]: which key each query token sees."""
    keys = torch.arange(span.context_len, device=device)
    positions = torch.arange(span.context_len - span.query_len, span.context_len, device=device)[:, None]
    visible = keys <= positions
    if sliding_window is not None:
        visible &= keys > positions - sliding_window
    return visible


def _group_rows(query: torch.Tensor, num_kv_heads: int) -> torch.Tensor:
    """[q, num_q_heads, d] -> [num_kv_heads, group * q, d]: the heads that share keys become rows."""
    query_len, _, head_dim = query.shape
    grouped = query.view(query_len, num_kv_heads, -1, head_dim)
    return grouped.permute(1, 2, 0, 3).reshape(num_kv_heads, -1, head_dim)


def _ungroup_rows(rows: torch.Tensor, query_len: int) -> torch.Tensor:
    num_kv_heads, _, head_dim = rows.shape
    return rows.view(num_kv_heads, -1, query_len, head_dim).permute(2, 0, 1, 3).reshape(query_len, -1, head_dim)


def _explicit(
    rows: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible: torch.Tensor,
    *,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Softmax written out in float32, for what `scaled_dot_product_attention` does not know."""
    num_kv_heads, num_rows, _ = rows.shape
    query_len, context_len = visible.shape
    scores = (rows.float() @ keys.float().transpose(1, 2)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.view(num_kv_heads, -1, query_len, context_len).masked_fill(~visible, float("-inf"))
    if sinks is not None:
        sink = sinks.float().view(num_kv_heads, -1, 1, 1).expand(-1, -1, query_len, 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :context_len].reshape(num_kv_heads, num_rows, context_len)
    return (weights @ values.float()).to(rows.dtype)
