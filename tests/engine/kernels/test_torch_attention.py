"""The reference itself, against attention written out for one sequence at a time."""

import pytest
import torch

from engine.kernels.torch_attention import TorchAttention
from tests.engine.kernels.paged_batch import Heads, make_batch


def _by_hand(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, position: int, window: int | None, sink: float | None
) -> torch.Tensor:
    """One query head at one position over [context, head_dim] keys."""
    first = 0 if window is None else max(0, position - window + 1)
    scores = (keys[first : position + 1] @ query) * query.shape[0] ** -0.5
    weights = scores.exp()
    total = weights.sum() + (0.0 if sink is None else torch.tensor(sink).exp())
    return (weights / total) @ values[first : position + 1]


@pytest.mark.parametrize(("window", "sinks"), [(None, None), (5, None), (None, [0.5, -1.0, 2.0, 0.0]), (3, [1.0] * 4)])
def test_each_row_by_hand(window: int | None, sinks: list[float] | None) -> None:
    spans = [(1, 12), (4, 4), (3, 20)]
    batch = make_batch(spans, Heads(4, 2, 8), block_size=4, dtype=torch.float32)
    got = TorchAttention().paged_attention(
        batch.query,
        batch.key_cache,
        batch.value_cache,
        batch.metadata,
        scale=8**-0.5,
        sliding_window=window,
        sinks=None if sinks is None else torch.tensor(sinks),
    )
    for index, span in enumerate(batch.metadata.spans):
        for token in range(span.query_len):
            position = span.context_len - span.query_len + token
            for head in range(4):
                blocks = batch.metadata.block_tables[index, : -(-span.context_len // 4)].long()
                keys, values = (
                    cache[blocks, head // 2].flatten(0, 1)[: span.context_len]
                    for cache in (batch.key_cache, batch.value_cache)
                )
                expected = _by_hand(
                    batch.query[span.start + token, head],
                    keys,
                    values,
                    position,
                    window,
                    None if sinks is None else sinks[head],
                )
                torch.testing.assert_close(got[span.start + token, head], expected, rtol=1e-5, atol=1e-6)
