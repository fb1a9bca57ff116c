"""Runs the shapes that will come once before the engine is ready: first-time costs fall here, not on a client.

All of it reads and writes the null block alone, so the cache stays untouched.
"""

from engine.config import EngineInfo
from engine.core import StepExecutor
from engine.request import SamplingParams
from engine.step import NewSequence, ScheduledSequence, StepPlan
from engine.step_progress import StepProgress

_MAX_PREFILL = 256
_SHORT_PREFILL = 16
_PARAMS = SamplingParams(max_tokens=1, seed=0, temperature=0.0)


def warm_up(executor: StepExecutor, info: EngineInfo, max_batched_tokens: int) -> bool:
    """A prompt, then decode steps of 1, 2, 4 ... sequences; whether all logits were finite."""
    prompt_len = max(1, min(max_batched_tokens, _MAX_PREFILL, info.max_model_len - 1))
    finite = _run(executor, info, num_sequences=1, context_len=prompt_len, num_tokens=prompt_len)
    sizes = {min(2**power, info.max_num_seqs) for power in range(info.max_num_seqs.bit_length() + 1)}
    for num_sequences in sorted(sizes):
        finite &= _run(executor, info, num_sequences=num_sequences, context_len=prompt_len, num_tokens=1)
    return finite


def warm_up_briefly(executor: StepExecutor, info: EngineInfo) -> bool:
    """A short prompt and one decode step, for ranks of which some are new; whether all logits were finite."""
    prompt_len = max(1, min(_SHORT_PREFILL, info.max_model_len - 1))
    finite = _run(executor, info, num_sequences=1, context_len=prompt_len, num_tokens=prompt_len)
    return finite & _run(executor, info, num_sequences=1, context_len=prompt_len, num_tokens=1)


def measure_patience(executor: StepExecutor, info: EngineInfo, max_batched_tokens: int, progress: StepProgress) -> None:
    """Learn from one more prompt how long a part of the largest step takes. Call it after `warm_up`."""
    prompt_len = max(1, min(max_batched_tokens, _MAX_PREFILL, info.max_model_len - 1))
    progress.longest_gap_s = 0.0
    _run(executor, info, num_sequences=1, context_len=prompt_len, num_tokens=prompt_len)
    progress.expect(max_batched_tokens / prompt_len)


def _run(executor: StepExecutor, info: EngineInfo, *, num_sequences: int, context_len: int, num_tokens: int) -> bool:
    """One step of `num_sequences` sequences that compute their last `num_tokens` tokens."""
    token_ids = [i % info.vocab_size for i in range(context_len)]
    null_blocks = [0] * -(-context_len // info.block_size)
    ids = range(-num_sequences, 0)  # the scheduler's ids are positive
    result = executor.execute(
        StepPlan(
            step=0,
            dropped_ids=[],
            new_sequences=[NewSequence(i, token_ids, context_len, _PARAMS, ()) for i in ids],
            scheduled=[
                ScheduledSequence(i, context_len - num_tokens, num_tokens, null_blocks, samples=True) for i in ids
            ],
        )
    )
    executor.execute(StepPlan(step=0, dropped_ids=list(ids), new_sequences=[], scheduled=[]))
    return not any(token.error for token in result.sampled)
