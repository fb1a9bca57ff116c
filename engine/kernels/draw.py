"""Draws from the distribution that temperature, top-k, top-p and min-p leave of each row of logits.

All implementations draw alike: the tokens kept are put in the order of their ids, and the first whose cumulative
weight exceeds `uniform` times the total is taken. So a stream goes on with the same tokens on another machine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine.kernels.argmax import NOT_FINITE
from engine.kernels.library import Kernels, thread_count

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
_KERNEL_DTYPES = (torch.bfloat16, torch.float32)
#: Best tokens looked at for a top-p cut before the whole vocabulary is sorted.
_TOP_P_WIDTHS = (64, 1024)
_RUN = 128  #: tokens whose weights are summed together in a draw over the whole vocabulary


@dataclass(frozen=True)
class DrawOptions:
    """Each row's parameters and uniform number in [0, 1). Cuts apply in this order; `top_k` 0 is off."""

    temperature: FloatArray  #: above 0
    top_k: IntArray
    top_p: FloatArray
    min_p: FloatArray
    uniform: npt.NDArray[np.float64]

    def take(self, positions: IntArray) -> "DrawOptions":
        """Those of some rows."""
        return DrawOptions(
            self.temperature[positions],
            self.top_k[positions],
            self.top_p[positions],
            self.min_p[positions],
            self.uniform[positions],
        )


#: Logits [R, vocabulary] and options [R] -> token ids, `NOT_FINITE` where logits hold NaN or their best is infinite.
Draw = Callable[[torch.Tensor, DrawOptions], IntArray]


def select_draw(kernels: Kernels | None, device: torch.device) -> Draw:
    """The fastest that runs here."""
    if device.type != "cpu" or kernels is None:
        return draw
    library = kernels.library

    def by_kernel(logits: torch.Tensor, options: DrawOptions) -> IntArray:
        if logits.dtype not in _KERNEL_DTYPES or logits.stride(1) != 1:
            return draw(logits, options)
        out = np.empty(logits.shape[0], dtype=np.int64)
        columns = (options.temperature, options.top_k, options.top_p, options.min_p, options.uniform)
        dense = [np.ascontiguousarray(column) for column in columns]
        library.manta_draw(
            thread_count(), int(logits.dtype is torch.bfloat16), out.ctypes.data, logits.data_ptr(),
            *(column.ctypes.data for column in dense), logits.shape[0], logits.shape[1], logits.stride(0),
        )  # fmt: skip
        return out

    return by_kernel


def draw(logits: torch.Tensor, options: DrawOptions) -> IntArray:
    """A `Draw` from torch's own operations, for any device.

    Rows are sorted in groups whose width follows from the row's own parameters, so that no row depends on another.
    """
    finite = logits.amax(dim=-1).isfinite()
    scaled = logits.float() / _tensor(options.temperature, logits)[:, None]
    chosen = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    whole = (options.top_p >= 1.0) & ((options.top_k <= 0) | (options.top_k >= logits.shape[1]))
    if (positions := np.flatnonzero(whole)).size:
        index = _tensor(positions, logits)
        chosen[index] = _draw_from_all(scaled[index], options.take(positions))
    _draw_truncated(scaled, np.flatnonzero(~whole), options, chosen)
    token_ids: IntArray = torch.where(finite, chosen, NOT_FINITE).cpu().numpy()
    return token_ids


def _draw_from_all(logits: torch.Tensor, options: DrawOptions) -> torch.Tensor:
    """Inverse of the cumulative distribution, first over runs of tokens, then inside the run that was hit."""
    num_rows, vocab_size = logits.shape
    num_runs = -(-vocab_size // _RUN)
    weights = logits.new_zeros(num_rows, num_runs * _RUN)
    torch.exp(logits - logits.amax(dim=-1, keepdim=True), out=weights[:, :vocab_size])
    if (options.min_p > 0).any():
        weights[weights < _tensor(options.min_p, logits).clamp(max=1.0)[:, None]] = 0.0
    runs = weights.view(num_rows, num_runs, _RUN)
    sums = runs.sum(dim=-1).double()
    cumulative = sums.cumsum(dim=-1)
    target = _tensor(options.uniform, logits)[:, None] * cumulative[:, -1:]
    run = _invert(cumulative, target)
    run_sum = sums.gather(1, run)
    into_run = (target - cumulative.gather(1, run) + run_sum) / run_sum
    inside = runs[torch.arange(num_rows, device=logits.device), run[:, 0]].double().cumsum(dim=-1)
    offset = _invert(inside, into_run.clamp(0.0, 1.0 - 2.0**-52) * inside[:, -1:])
    return (run * _RUN + offset)[:, 0]


def _draw_truncated(logits: torch.Tensor, positions: IntArray, options: DrawOptions, chosen: torch.Tensor) -> None:
    """Fill in `chosen` for rows with top-k or top-p, in groups of equal width.

    The width is the row's top-k rounded up to a power of two; for top-p alone it grows until the kept mass fits in.
    """
    vocab_size = logits.shape[1]
    top_k = options.top_k[positions]
    widths = 2 ** np.ceil(np.log2(np.maximum(top_k, _TOP_P_WIDTHS[0]))).astype(np.int64)
    while positions.size:
        width = int(widths.min())
        group = widths == width
        members, rest = positions[group], positions[~group]
        some = logits[_tensor(members, logits)]
        token_ids, complete = _draw_from_best(some, min(width, vocab_size), options.take(members))
        done = complete.cpu().numpy()
        chosen[_tensor(members[done], logits)] = token_ids[complete]
        wider = next((w for w in _TOP_P_WIDTHS if w > width), vocab_size)
        positions = np.concatenate([members[~done], rest])
        widths = np.concatenate([np.full((~done).sum(), wider), widths[~group]])


def _draw_from_best(logits: torch.Tensor, width: int, options: DrawOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw among the `width` best of each row: token ids [R], and whether the kept mass lay within them."""
    values, token_ids = logits.topk(width, dim=-1)
    weights = torch.exp((values - values[:, :1]).double())
    top_k = _tensor(np.where(options.top_k > 0, options.top_k, logits.shape[1]), logits)[:, None]
    weights[torch.arange(width, device=logits.device) >= top_k] = 0.0
    cumulative = weights.cumsum(dim=-1)
    if (options.top_k > 0).all():
        total = cumulative[:, -1:]
    else:
        everything = torch.exp(logits - values[:, :1]).sum(dim=-1, keepdim=True, dtype=torch.float64)
        total = torch.where(top_k <= width, cumulative[:, -1:], everything)
    kept_mass = _tensor(options.top_p.astype(np.float64), logits)[:, None] * total
    complete = (cumulative[:, -1:] >= kept_mass) | (top_k <= width) | (width == logits.shape[1])
    keep = cumulative - weights < kept_mass
    keep &= weights >= _tensor(options.min_p.astype(np.float64), logits)[:, None]
    keep[:, 0] = True
    token_ids, by_id = token_ids.sort(dim=-1)
    cumulative = (weights * keep).gather(1, by_id).cumsum(dim=-1)
    rank = _invert(cumulative, _tensor(options.uniform, logits)[:, None] * cumulative[:, -1:])
    return token_ids.gather(1, rank)[:, 0], complete[:, 0]


def _invert(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative weight exceeds the target: never one of weight zero."""
    return torch.searchsorted(cumulative, target, right=True).clamp_(max=cumulative.shape[1] - 1)


def _tensor(array: npt.NDArray[np.generic], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device)
