"""The best token of each row of logits: by a kernel, else by what is fastest of numpy and torch."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from engine.kernels.library import Kernels, thread_count

#: What stands for the token of a row whose logits were not finite.
NOT_FINITE = -1
#: Logits [R, vocabulary] -> the first best token of each row, `NOT_FINITE` where it holds NaN or its best is infinite.
BestTokens = Callable[[torch.Tensor], npt.NDArray[np.int64]]

_KERNEL_DTYPES = (torch.bfloat16, torch.float32)


def select_best_tokens(kernels: Kernels | None, device: torch.device) -> BestTokens:
    """The fastest that runs here."""
    if device.type != "cpu" or kernels is None:
        return best_tokens
    library = kernels.library

    def by_kernel(logits: torch.Tensor) -> npt.NDArray[np.int64]:
        if logits.dtype not in _KERNEL_DTYPES or logits.stride(1) != 1:
            return best_tokens(logits)
        out = np.empty(logits.shape[0], dtype=np.int64)
        library.manta_argmax(
            thread_count(), int(logits.dtype is torch.bfloat16), out.ctypes.data, logits.data_ptr(),
            logits.shape[0], logits.shape[1], logits.stride(0),
        )  # fmt: skip
        return out

    return by_kernel


def best_tokens(logits: torch.Tensor) -> npt.NDArray[np.int64]:
    """A `BestTokens` for any device."""
    if logits.device.type != "cpu":
        maxima, indices = logits.max(dim=-1)
        answer: npt.NDArray[np.int64] = torch.where(maxima.isfinite(), indices, NOT_FINITE).cpu().numpy()
        return answer
    values = logits.float().numpy()  # its argmax is vectorised and ten times as fast as torch's
    token_ids = values.argmax(axis=1)
    best = values[np.arange(len(token_ids)), token_ids]
    return np.where(np.isfinite(best), token_ids, NOT_FINITE)
