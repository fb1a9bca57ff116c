"""Ragged batches over a paged cache whose unused slots hold NaN, so that reading one shows."""

from dataclasses import dataclass

import torch

from engine.kernels.metadata import AttentionMetadata
from engine.kernels.torch_attention import TorchAttention


@dataclass(frozen=True)
class Heads:
    num_query: int
    num_kv: int
    head_dim: int


@dataclass(frozen=True)
class PagedBatch:
    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    metadata: AttentionMetadata

    def subset(self, sequence: int, first: int, end: int) -> "PagedBatch":
        """Query tokens [first, end) of one sequence alone, as an earlier or later chunk would bring them."""
        span = self.metadata.spans[sequence]
        metadata = AttentionMetadata(
            query_start=torch.tensor([0, end - first], dtype=torch.int32),
            context_lens=torch.tensor([span.context_len - span.query_len + end], dtype=torch.int32),
            block_tables=self.metadata.block_tables[sequence : sequence + 1],
            max_query_len=end - first,
            max_context_len=span.context_len,
        )
        query = self.query[span.start + first : span.start + end]
        return PagedBatch(query, self.key_cache, self.value_cache, metadata)


def make_batch(
    spans: list[tuple[int, int]], heads: Heads, *, block_size: int, dtype: torch.dtype, seed: int = 0
) -> PagedBatch:
    """Sequences of (query_len, context_len) with random tensors in randomly chosen blocks."""
    generator = torch.Generator().manual_seed(seed)
    num_blocks = [-(-context // block_size) for _, context in spans]
    order = torch.randperm(sum(num_blocks) + 2, generator=generator).tolist()
    tables = torch.full((len(spans), max(num_blocks)), 2**30, dtype=torch.int32)
    shape = (len(order), heads.num_kv, block_size, heads.head_dim)
    key_cache, value_cache = torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype)
    for row, (_, context) in enumerate(spans):
        mine = [order.pop() for _ in range(num_blocks[row])]
        tables[row, : len(mine)] = torch.tensor(mine, dtype=torch.int32)
        positions = torch.arange(context)
        slots = tables[row].long()[positions // block_size] * block_size + positions % block_size
        keys, values = (
            torch.randn(context, heads.num_kv, heads.head_dim, generator=generator).to(dtype) for _ in range(2)
        )
        TorchAttention().write_kv(keys, values, key_cache, value_cache, slots)
    lengths = torch.tensor([0, *(query for query, _ in spans)], dtype=torch.int32)
    metadata = AttentionMetadata(
        query_start=lengths.cumsum(0).to(torch.int32),
        context_lens=torch.tensor([context for _, context in spans], dtype=torch.int32),
        block_tables=tables,
        max_query_len=max(query for query, _ in spans),
        max_context_len=max(context for _, context in spans),
    )
    query = torch.randn(int(lengths.sum()), heads.num_query, heads.head_dim, generator=generator).to(dtype)
    return PagedBatch(query, key_cache, value_cache, metadata)
