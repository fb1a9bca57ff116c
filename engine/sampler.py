"""Chooses the next tokens of a batch: penalties, bias, temperature, truncation and the draw, all vectorised.

A row's token depends on its own logits and parameters only, never on the rows beside it: sorting runs in groups
whose width follows from the row's own parameters, and the draw is keyed by (seed, output index).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine.kernels.argmax import NOT_FINITE, BestTokens
from engine.logprobs import token_logprobs
from engine.random_draw import uniform
from engine.request import TokenLogprobs
from engine.sampling_table import GREEDY_TEMPERATURE, SamplingTable
from engine.sequence_table import IntArray, SequenceTable

BoolArray = npt.NDArray[np.bool_]
#: Best tokens looked at for a top-p cut before the whole vocabulary is sorted.
_TOP_P_WIDTHS = (64, 1024)
_RUN = 128  #: tokens whose weights are summed together in a draw over the whole vocabulary


@dataclass(frozen=True)
class Sampled:
    """The next tokens of R sequences, `NOT_FINITE` where the logits held NaN or infinity."""

    token_ids: IntArray
    logprobs: list[TokenLogprobs | None] | None  #: None when no row asked


class Sampler:
    """Samples for rows of a `SequenceTable` with the parameters of a `SamplingTable`."""

    def __init__(self, sequences: SequenceTable, params: SamplingTable, best_tokens: BestTokens) -> None:
        self._sequences = sequences
        self._params = params
        self._best_tokens = best_tokens

    def sample(self, logits: torch.Tensor, rows: IntArray) -> Sampled:
        """Next tokens for logits [R, vocabulary], which may be overwritten; `rows` [R] of the tables."""
        num_output = self._sequences.num_tokens[rows] - self._sequences.num_prompt_tokens[rows]
        plain = self._params.is_plain[rows] & (num_output >= self._params.min_tokens[rows])
        if plain.all():
            return Sampled(self._best_tokens(logits), None)
        logits = logits.float()
        finite = logits.amax(dim=-1).isfinite()
        asked = np.flatnonzero(self._params.num_logprobs[rows] >= 0)
        raw = logits[_index(asked, logits)].log_softmax(dim=-1) if asked.size else None
        self._penalize(logits, rows)
        self._mask_and_bias(logits, rows, num_output)
        chosen = self._choose(logits, rows, num_output)
        token_ids = torch.where(finite, chosen, NOT_FINITE).cpu().numpy()
        if raw is None:
            return Sampled(token_ids, None)
        logprobs: list[TokenLogprobs | None] = [None] * len(rows)
        counts = self._params.num_logprobs[rows[asked]]
        for position, entry in zip(asked, token_logprobs(raw, token_ids[asked], counts), strict=True):
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

    def _choose(self, logits: torch.Tensor, rows: IntArray, num_output: IntArray) -> torch.Tensor:
        """Greedy rows take the best token, the others draw."""
        temperature = self._params.temperature[rows]
        greedy = temperature < GREEDY_TEMPERATURE
        if greedy.all():
            return _tensor(self._best_tokens(logits), logits)
        draws = _Draws(
            top_k=np.where(greedy, 0, self._params.top_k[rows]),
            top_p=np.where(greedy, np.float32(1.0), self._params.top_p[rows]),
            min_p=self._params.min_p[rows],
            uniform=uniform(self._params.seed[rows], num_output),
        )
        chosen = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
        if (positions := np.flatnonzero(greedy)).size:
            index = _index(positions, logits)
            chosen[index] = _tensor(self._best_tokens(logits[index]), logits)
        logits.div_(_tensor(np.where(greedy, np.float32(1.0), temperature), logits)[:, None])
        whole = ~greedy & (draws.top_p >= 1.0) & ((draws.top_k <= 0) | (draws.top_k >= logits.shape[1]))
        if (positions := np.flatnonzero(whole)).size:
            index = _index(positions, logits)
            chosen[index] = _draw_from_all(logits[index], draws.take(positions))
        _draw_truncated(logits, np.flatnonzero(~greedy & ~whole), draws, chosen)
        return chosen


@dataclass(frozen=True)
class _Draws:
    """Truncation parameters and the uniform number of each row."""

    top_k: IntArray
    top_p: npt.NDArray[np.float32]
    min_p: npt.NDArray[np.float32]
    uniform: npt.NDArray[np.float64]

    def take(self, positions: IntArray) -> "_Draws":
        return _Draws(self.top_k[positions], self.top_p[positions], self.min_p[positions], self.uniform[positions])


def _draw_from_all(logits: torch.Tensor, draws: _Draws) -> torch.Tensor:
    """Inverse of the cumulative distribution, first over runs of tokens, then inside the run that was hit."""
    num_rows, vocab_size = logits.shape
    num_runs = -(-vocab_size // _RUN)
    weights = logits.new_zeros(num_rows, num_runs * _RUN)
    torch.exp(logits - logits.amax(dim=-1, keepdim=True), out=weights[:, :vocab_size])
    if (draws.min_p > 0).any():
        weights[weights < _tensor(draws.min_p, logits)[:, None]] = 0.0
    runs = weights.view(num_rows, num_runs, _RUN)
    sums = runs.sum(dim=-1).double()
    cumulative = sums.cumsum(dim=-1)
    target = _tensor(draws.uniform, logits)[:, None] * cumulative[:, -1:]
    run = torch.searchsorted(cumulative, target, right=True).clamp_(max=num_runs - 1)
    run_sum = sums.gather(1, run)
    into_run = (target - cumulative.gather(1, run) + run_sum) / run_sum
    inside = runs[torch.arange(num_rows, device=logits.device), run[:, 0]].double().cumsum(dim=-1)
    offset = _invert(inside, into_run.clamp(0.0, 1.0 - 2.0**-52) * inside[:, -1:])
    return (run * _RUN + offset)[:, 0]


def _draw_truncated(logits: torch.Tensor, positions: IntArray, draws: _Draws, chosen: torch.Tensor) -> None:
    """Fill in `chosen` for rows with top-k or top-p, in groups of equal width.

    The width is the row's top-k rounded up to a power of two; for top-p alone it grows until the kept mass fits in.
    """
    vocab_size = logits.shape[1]
    top_k = draws.top_k[positions]
    widths = 2 ** np.ceil(np.log2(np.maximum(top_k, _TOP_P_WIDTHS[0]))).astype(np.int64)
    while positions.size:
        width = int(widths.min())
        group = widths == width
        members, rest = positions[group], positions[~group]
        token_ids, complete = _draw_from_best(
            logits[_index(members, logits)], min(width, vocab_size), draws.take(members)
        )
        done = complete.cpu().numpy()
        chosen[_index(members[done], logits)] = token_ids[complete]
        wider = next((w for w in _TOP_P_WIDTHS if w > width), vocab_size)
        positions = np.concatenate([members[~done], rest])
        widths = np.concatenate([np.full((~done).sum(), wider), widths[~group]])


def _draw_from_best(logits: torch.Tensor, width: int, draws: _Draws) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw among the `width` best of each row: token ids [R], and whether the kept mass lay within them."""
    values, token_ids = logits.topk(width, dim=-1)
    weights = torch.exp((values - values[:, :1]).double())
    top_k = _tensor(np.where(draws.top_k > 0, draws.top_k, logits.shape[1]), logits)[:, None]
    weights[torch.arange(width, device=logits.device) >= top_k] = 0.0
    cumulative = weights.cumsum(dim=-1)
    if (draws.top_k > 0).all():
        total = cumulative[:, -1:]
    else:
        everything = torch.exp(logits - values[:, :1]).sum(dim=-1, keepdim=True, dtype=torch.float64)
        total = torch.where(top_k <= width, cumulative[:, -1:], everything)
    kept_mass = _tensor(draws.top_p.astype(np.float64), logits)[:, None] * total
    complete = (cumulative[:, -1:] >= kept_mass) | (top_k <= width) | (width == logits.shape[1])
    keep = cumulative - weights < kept_mass
    keep &= weights >= _tensor(draws.min_p.astype(np.float64), logits)[:, None]
    keep[:, 0] = True
    cumulative = (weights * keep).cumsum(dim=-1)
    rank = _invert(cumulative, _tensor(draws.uniform, logits)[:, None] * cumulative[:, -1:])
    return token_ids.gather(1, rank)[:, 0], complete[:, 0]


def _invert(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative weight exceeds the target: never one of weight zero."""
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[1] - 1)


def _tensor(array: npt.NDArray[np.generic], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device)


def _index(positions: IntArray, like: torch.Tensor) -> torch.Tensor:
    return _tensor(positions, like)
