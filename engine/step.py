"""One forward pass: the plan the scheduler sends to the ranks, and what comes back.

A plan is a delta: ranks keep each sequence's tokens and block table from its `NewSequence` until it is dropped.
Block 0 of every cache is the null block: never allocated, padding tokens read and write it.
"""

import msgspec

from engine.request import SamplingParams, TokenLogprobs


class NewSequence(msgspec.Struct, frozen=True, array_like=True):
    """State the ranks have not seen, or have dropped: sent once before its first scheduled step."""

    sequence_id: int
    token_ids: list[int]  #: prompt, then output so far
    num_prompt_tokens: int
    sampling: SamplingParams
    ending_token_ids: tuple[int, ...]  #: eos and stop tokens; masked while output < `sampling.min_tokens`


class ScheduledSequence(msgspec.Struct, frozen=True, array_like=True):
    """`num_tokens` tokens of one sequence computed this step, from position `start` on."""

    sequence_id: int
    start: int
    num_tokens: int
    new_block_ids: list[int]  #: appended to the sequence's block table before the step
    samples: bool  #: the step reaches the last known token, so the next one is sampled (and kept by the ranks)


class StepPlan(msgspec.Struct, frozen=True, array_like=True):
    """What the ranks do in step number `step`, in this order: drop, learn the new, compute the scheduled."""

    step: int
    dropped_ids: list[int]  #: finished, aborted or preempted
    new_sequences: list[NewSequence]
    scheduled: list[ScheduledSequence]
    num_padding_tokens: int = 0  #: computed for nothing: what static batching pays (see `engine.batching`)

    @property
    def num_tokens(self) -> int:
        """Tokens computed by the step, padding included."""
        return sum(s.num_tokens for s in self.scheduled) + self.num_padding_tokens


class SampledToken(msgspec.Struct, frozen=True, array_like=True):
    """The next token of one sequence."""

    sequence_id: int
    token_id: int
    logprobs: TokenLogprobs | None = None
    error: str = ""  #: logits were not finite; `token_id` means nothing


class PromptLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities of the prompt tokens at positions `start + 1 ...` given what stands before them."""

    sequence_id: int
    start: int
    logprobs: list[TokenLogprobs]


class StepResult(msgspec.Struct, frozen=True, array_like=True):
    """What the last stage's first rank answers for a plan: one entry per sequence that samples."""

    step: int
    sampled: list[SampledToken]
    prompt_logprobs: list[PromptLogprobs] = []
