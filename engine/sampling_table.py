"""The sampling parameters of the running sequences, in arrays with the rows of `SequenceTable`."""

import numpy as np
import numpy.typing as npt

from engine.random_draw import seed_key
from engine.request import SamplingParams
from engine.sequence_table import IntArray
from engine.step import NewSequence

FloatArray = npt.NDArray[np.float32]
#: Below this temperature the best token is as good as certain, and dividing by it would overflow.
GREEDY_TEMPERATURE = 1e-5


class SamplingTable:
    """One row of parameters per sequence. `is_untouched` rows use their logits as they are."""

    def __init__(self, *, max_num_seqs: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self.temperature: FloatArray = np.ones(max_num_seqs, dtype=np.float32)
        self.top_k: IntArray = np.zeros(max_num_seqs, dtype=np.int64)
        self.top_p: FloatArray = np.ones(max_num_seqs, dtype=np.float32)
        self.min_p: FloatArray = np.zeros(max_num_seqs, dtype=np.float32)
        self.repetition_penalty: FloatArray = np.ones(max_num_seqs, dtype=np.float32)
        self.presence_penalty: FloatArray = np.zeros(max_num_seqs, dtype=np.float32)
        self.frequency_penalty: FloatArray = np.zeros(max_num_seqs, dtype=np.float32)
        self.min_tokens: IntArray = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_logprobs: IntArray = np.full(max_num_seqs, -1, dtype=np.int64)  #: -1: none asked for
        self.seed: npt.NDArray[np.uint64] = np.zeros(max_num_seqs, dtype=np.uint64)
        self.is_untouched: npt.NDArray[np.bool_] = np.ones(max_num_seqs, dtype=np.bool_)
        self.bias: dict[int, tuple[IntArray, FloatArray]] = {}  #: row -> token ids and what is added to their logits
        self.ending_ids: dict[int, IntArray] = {}  #: row -> ids masked while fewer than `min_tokens` are out
        self.prompt_logprobs: dict[int, int] = {}  #: row -> how many of the best beside each prompt token's own

    def set(self, row: int, new: NewSequence) -> None:
        """Take over the parameters of a sequence that has got this row."""
        params = new.sampling
        self.temperature[row] = params.temperature
        self.top_k[row] = params.top_k
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.repetition_penalty[row] = params.repetition_penalty
        self.presence_penalty[row] = params.presence_penalty
        self.frequency_penalty[row] = params.frequency_penalty
        self.num_logprobs[row] = -1 if params.logprobs is None else params.logprobs
        self.seed[row] = seed_key(params.seed)
        self.is_untouched[row] = _is_untouched(params)
        self._set_sparse(row, new)

    def forget(self, row: int) -> None:
        """The row's sequence has gone."""
        for table in (self.bias, self.ending_ids, self.prompt_logprobs):
            table.pop(row, None)

    def _set_sparse(self, row: int, new: NewSequence) -> None:
        params = new.sampling
        if params.logit_bias:
            ids = np.fromiter(params.logit_bias.keys(), dtype=np.int64)
            values = np.fromiter(params.logit_bias.values(), dtype=np.float32)
            self.bias[row] = ids[ids < self._vocab_size], values[ids < self._vocab_size]
        endings = np.array([i for i in new.ending_token_ids if i < self._vocab_size], dtype=np.int64)
        self.min_tokens[row] = params.min_tokens if endings.size else 0
        if params.min_tokens > 0 and endings.size:
            self.ending_ids[row] = endings
        if params.prompt_logprobs is not None:
            self.prompt_logprobs[row] = params.prompt_logprobs


def _is_untouched(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty == 1.0
        and params.presence_penalty == 0.0
        and params.frequency_penalty == 0.0
        and not params.logit_bias
        and params.logprobs is None
    )
