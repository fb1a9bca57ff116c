"""Chooses the next tokens of a batch: penalties, bias, temperature, truncation and the draw, all vectorised.

A row's token depends on its own logits and parameters only, never on the rows beside it; the draw is keyed by
(seed, output index).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine.kernels.argmax import BestTokens
from engine.kernels.draw import Draw, DrawOptions
from engine.logprobs import token_logprobs
from engine.random_draw import uniform
from engine.request import TokenLogprobs
from engine.sampling_table import GREEDY_TEMPERATURE, SamplingTable
from engine.sequence_table import IntArray, SequenceTable


@dataclass(frozen=True)
class Sampled:
    """The next tokens of R sequences, `NOT_FINITE` where the logits held NaN or infinity."""

    token_ids: IntArray
    logprobs: list[TokenLogprobs | None] | None  #: None when no row asked


class Sampler:
    """Samples for rows of a `SequenceTable` with the parameters of a `SamplingTable`."""

    def __init__(self, sequences: SequenceTable, params: SamplingTable, best_tokens: BestTokens, draw: Draw) -> None:
        self._sequences = sequences
        self._params = params
        self._best_tokens = best_tokens
        self._draw = draw

    def sample(self, logits: torch.Tensor, rows: IntArray) -> Sampled:
        """Next tokens for logits [R, vocabulary], which may be overwritten; `rows` [R] of the tables."""
        params = self._params
        num_output = self._sequences.num_tokens[rows] - self._sequences.num_prompt_tokens[rows]
        untouched = params.is_untouched[rows] & (num_output >= params.min_tokens[rows])
        if untouched.all():
            return Sampled(self._choose(logits, rows, num_output), None)
        logits = logits.float()
        asked = np.flatnonzero(params.num_logprobs[rows] >= 0)
        raw = logits[_tensor(asked, logits)].log_softmax(dim=-1) if asked.size else None
        self._penalize(logits, rows)
        self._mask_and_bias(logits, rows, num_output)
        token_ids = self._choose(logits, rows, num_output)
        if raw is None:
            return Sampled(token_ids, None)
        logprobs: list[TokenLogprobs | None] = [None] * len(rows)
        entries = token_logprobs(raw, token_ids[asked], params.num_logprobs[rows[asked]])
        for position, entry in zip(asked, entries, strict=True):
            logprobs[position] = entry
        return Sampled(token_ids, logprobs)

    def _penalize(self, logits: torch.Tensor, rows: IntArray) -> None:
        """Repetition penalty over prompt and output, presence and frequency penalties over output."""
        params, flat = self._params, logits.view(-1)
        repetition = params.repetition_penalty[rows]
        if (affected := np.flatnonzero(repetition != 1.0)).size:
            index, owner = self._occurrences(logits, rows, affected, output_only=False)
            factor = _tensor(repetition[owner], logits)
            score = flat[index]
            flat[index] = torch.where(score < 0, score * factor, score / factor)
        presence, frequency = params.presence_penalty[rows], params.frequency_penalty[rows]
        if (affected := np.flatnonzero((presence != 0.0) | (frequency != 0.0))).size:
            index, owner = self._occurrences(logits, rows, affected, output_only=True)
            flat[index] = flat[index] - _tensor(presence[owner], logits)
            flat.index_add_(0, index, -_tensor(frequency[owner], logits))

    def _occurrences(
        self, logits: torch.Tensor, rows: IntArray, affected: IntArray, *, output_only: bool
    ) -> tuple[torch.Tensor, IntArray]:
        """Where each token of the affected rows lies in the flattened logits, and which row each belongs to."""
        table = self._sequences
        parts = []
        for position in affected:
            row = rows[position]
            first = table.num_prompt_tokens[row] if output_only else 0
            parts.append(table.tokens[row, first : table.num_tokens[row]].astype(np.int64))
        owner = np.repeat(affected, [len(part) for part in parts])
        return _tensor(np.concatenate(parts) + owner * logits.shape[1], logits), owner

    def _mask_and_bias(self, logits: torch.Tensor, rows: IntArray, num_output: IntArray) -> None:
        params = self._params
        for position, row in enumerate(rows.tolist()):
            if (bias := params.bias.get(row)) is not None:
                logits[position].index_add_(0, _tensor(bias[0], logits), _tensor(bias[1], logits))
            if num_output[position] < params.min_tokens[row]:
                logits[position, _tensor(params.ending_ids[row], logits)] = float("-inf")

    def _choose(self, logits: torch.Tensor, rows: IntArray, num_output: IntArray) -> IntArray:
        """Greedy rows take the best token, the others draw."""
        params = self._params
        greedy = params.temperature[rows] < GREEDY_TEMPERATURE
        if greedy.all():
            return self._best_tokens(logits)
        options = DrawOptions(
            temperature=params.temperature[rows],
            top_k=params.top_k[rows],
            top_p=params.top_p[rows],
            min_p=params.min_p[rows],
            uniform=uniform(params.seed[rows], num_output),
        )
        if not greedy.any():
            return self._draw(logits, options)
        token_ids = np.empty(len(rows), dtype=np.int64)
        best, drawn = np.flatnonzero(greedy), np.flatnonzero(~greedy)
        token_ids[best] = self._best_tokens(logits[_tensor(best, logits)])
        token_ids[drawn] = self._draw(logits[_tensor(drawn, logits)], options.take(drawn))
        return token_ids


def _tensor(array: npt.NDArray[np.generic], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device)
