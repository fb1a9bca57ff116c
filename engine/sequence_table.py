"""What a rank knows of its running sequences, in arrays with one row per sequence, and each step's flat batch.

The rows are kept up to date by the deltas of a `StepPlan`, so that a step costs a few array operations however
many sequences it computes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.step import NewSequence, ScheduledSequence

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class FlatBatch:
    """One step's T tokens of S sequences laid end to end; padding tokens stand last, as sequences of one token."""

    rows: IntArray  #: [S] of the table; padding has none
    input_ids: IntArray  #: [T]
    positions: IntArray  #: [T]
    query_start: Int32Array  #: [S + padding + 1]
    context_lens: Int32Array  #: [S + padding]
    block_tables: Int32Array  #: [S + padding, blocks of the longest context]
    slot_mapping: IntArray  #: [T]
    max_query_len: int
    max_context_len: int

    @property
    def num_tokens(self) -> int:
        """T, padding included."""
        return len(self.input_ids)


class SequenceTable:
    """Tokens and block table of each sequence from its `NewSequence` until it is dropped."""

    def __init__(self, *, max_num_seqs: int, max_model_len: int, block_size: int) -> None:
        self.block_size = block_size
        # One more column than a sequence can have: the last token sampled is stored and never computed.
        self.tokens: Int32Array = np.zeros((max_num_seqs, max_model_len + 1), dtype=np.int32)
        self.num_tokens: IntArray = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_prompt_tokens: IntArray = np.zeros(max_num_seqs, dtype=np.int64)
        self._block_tables: Int32Array = np.zeros((max_num_seqs, -(-max_model_len // block_size)), dtype=np.int32)
        self._num_blocks = [0] * max_num_seqs
        self._row_of: dict[int, int] = {}
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._row_of)

    def add(self, new: NewSequence) -> int:
        """Learn a sequence; returns its row."""
        if not self._free_rows or new.sequence_id in self._row_of:
            raise ValueError(f"sequence {new.sequence_id}: {len(self)} rows taken, {len(self._free_rows)} free")
        row = self._free_rows.pop()
        self._row_of[new.sequence_id] = row
        self.tokens[row, : len(new.token_ids)] = new.token_ids
        self.num_tokens[row] = len(new.token_ids)
        self.num_prompt_tokens[row] = new.num_prompt_tokens
        self._num_blocks[row] = 0
        return row

    def drop(self, sequence_id: int) -> int | None:
        """Forget a sequence, return the row it had; one that never was sent (preempted before that) is no error."""
        row = self._row_of.pop(sequence_id, None)
        if row is not None:
            self._free_rows.append(row)
        return row

    def append_tokens(self, rows: IntArray, token_ids: IntArray) -> None:
        """Keep one sampled token for each of the rows."""
        self.tokens[rows, self.num_tokens[rows]] = token_ids
        self.num_tokens[rows] += 1

    def learn_tokens(self, sampled: list[tuple[int, int]]) -> None:
        """Keep what another rank has sampled, (sequence id, token id) each; dropped sequences are passed over."""
        known = [(row, token_id) for owner, token_id in sampled if (row := self._row_of.get(owner)) is not None]
        if known:
            rows, token_ids = np.array(known, dtype=np.int64).T
            self.append_tokens(rows, token_ids)

    def lay_out(self, scheduled: list[ScheduledSequence], num_padding_tokens: int) -> FlatBatch:
        """The flat batch of a step, after its new blocks have joined the block tables."""
        rows = np.array([self._extend_blocks(entry) for entry in scheduled], dtype=np.int64)
        starts = np.array([entry.start for entry in scheduled], dtype=np.int64)
        counts = np.array([entry.num_tokens for entry in scheduled], dtype=np.int64)
        query_start = np.zeros(len(rows) + num_padding_tokens + 1, dtype=np.int32)
        np.cumsum(counts, out=query_start[1 : len(rows) + 1])
        context_lens = starts + counts
        max_query_len = int(counts.max(initial=1))
        max_context_len = int(context_lens.max(initial=1))
        block_tables = self._block_tables[rows, : -(-max_context_len // self.block_size)]
        if max_query_len == 1:
            positions, token_rows, token_sequences = starts, rows, np.arange(len(rows))
        else:
            token_sequences = np.repeat(np.arange(len(rows)), counts)
            token_rows = rows[token_sequences]
            positions = np.arange(len(token_rows)) + (starts - query_start[: len(rows)])[token_sequences]
        blocks = block_tables[token_sequences, positions // self.block_size]
        batch = FlatBatch(
            rows=rows,
            input_ids=self.tokens[token_rows, positions].astype(np.int64),
            positions=positions,
            query_start=query_start,
            context_lens=context_lens.astype(np.int32),
            block_tables=block_tables,
            slot_mapping=blocks * np.int64(self.block_size) + positions % self.block_size,
            max_query_len=max_query_len,
            max_context_len=max_context_len,
        )
        return _pad(batch, num_padding_tokens) if num_padding_tokens else batch

    def _extend_blocks(self, entry: ScheduledSequence) -> int:
        row = self._row_of[entry.sequence_id]
        if entry.new_block_ids:
            first = self._num_blocks[row]
            self._num_blocks[row] = last = first + len(entry.new_block_ids)
            self._block_tables[row, first:last] = entry.new_block_ids
        return row


def _pad(batch: FlatBatch, count: int) -> FlatBatch:
    """Token 0 at position 0 of the null block, `count` times."""
    zeros = np.zeros(count, dtype=np.int64)
    batch.query_start[-count:] = batch.num_tokens + np.arange(1, count + 1)
    null_tables = np.zeros((count, batch.block_tables.shape[1]), dtype=np.int32)
    return FlatBatch(
        rows=batch.rows,
        input_ids=np.concatenate([batch.input_ids, zeros]),
        positions=np.concatenate([batch.positions, zeros]),
        query_start=batch.query_start,
        context_lens=np.concatenate([batch.context_lens, np.ones(count, dtype=np.int32)]),
        block_tables=np.concatenate([batch.block_tables, null_tables]),
        slot_mapping=np.concatenate([batch.slot_mapping, zeros]),
        max_query_len=batch.max_query_len,
        max_context_len=batch.max_context_len,
    )
