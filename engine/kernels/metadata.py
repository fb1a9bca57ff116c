"""The shape of one step's attention: which tokens belong to which sequence, and where their keys lie."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch


class SequenceSpan(NamedTuple):
    """One sequence's part of the flat token batch, as plain numbers."""

    start: int  #: index of its first query token in the batch
    query_len: int
    context_len: int


@dataclass(frozen=True)
class AttentionMetadata:
    """S sequences over a flat batch of T tokens; tensors lie on the device of the cache.

    Sequence s has the query tokens `query_start[s]:query_start[s + 1]`; the i-th of its q tokens stands at
    position `context_lens[s] - q + i` and sees the keys from 0 to its own position.
    """

    query_start: torch.Tensor  #: int32 [S + 1]
    context_lens: torch.Tensor  #: int32 [S]; keys that the sequence's last token sees, this step's included
    block_tables: torch.Tensor  #: int32 [S, max_blocks]; entries behind the context are never read
    max_query_len: int
    max_context_len: int

    @property
    def num_sequences(self) -> int:
        return int(self.context_lens.shape[0])

    @cached_property
    def spans(self) -> list[SequenceSpan]:
        """The same on the host; on a GPU the first use in a step waits for the device."""
        starts = self.query_start.tolist()
        contexts = self.context_lens.tolist()
        return [
            SequenceSpan(start, end - start, context)
            for (start, end), context in zip(pairwise(starts), contexts, strict=True)
        ]
