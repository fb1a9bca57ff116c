"""An executor without a model: the next token is a hash of all tokens before it.

So any token lost, doubled, swapped or computed from a wrong prefix changes everything after it, and comparing with
`next_chain_token` proves a stream exact. It keeps books of every block like ranks do and refuses a plan that breaks
the contract of `engine.step`. Without a pace it is the null engine for measuring what surrounds an engine.
"""

import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol, Self

from engine.block_pool import NULL_BLOCK_ID
from engine.core import InlineExecutor
from engine.errors import MantaError
from engine.request import TokenLogprobs
from engine.step import NewSequence, PromptLogprobs, SampledToken, ScheduledSequence, StepPlan, StepResult

DIGEST_BYTES = 8
UNLIKELY = -100.0  #: log probability of a token that the chain would not have chosen


class PlanViolation(MantaError):
    """A plan that breaks the contract with the ranks."""

    def __init__(self, step: int, sequence_id: int, why: str) -> None:
        super().__init__(step, sequence_id, why)
        self.step, self.sequence_id, self.why = step, sequence_id, why

    def __str__(self) -> str:
        return f"step {self.step}, sequence {self.sequence_id}: {self.why}"


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...
    def copy(self) -> Self: ...


def _packed(token_ids: list[int]) -> bytes:
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


def _token_of(digest: bytes, vocab_size: int, masked: Iterable[int]) -> int:
    token_id = int.from_bytes(digest, "little") % vocab_size
    while token_id in masked:
        token_id = (token_id + 1) % vocab_size
    return token_id


def _new_chain(weights: int) -> _Hash:
    return blake2b(digest_size=DIGEST_BYTES, salt=weights.to_bytes(blake2b.SALT_SIZE, "little"))


def next_chain_token(token_ids: list[int], vocab_size: int, masked: Iterable[int] = (), weights: int = 0) -> int:
    """The token that the chain puts after `token_ids`; the next higher one if it is `masked`."""
    chain = _new_chain(weights)
    chain.update(_packed(token_ids))
    return _token_of(chain.digest(), vocab_size, masked)


@dataclass(slots=True, eq=False)
class _ChainSequence:
    """What a rank keeps of a sequence, and the hash of the tokens computed so far."""

    new: NewSequence
    token_ids: list[int]
    block_ids: list[int]
    chain: _Hash
    num_computed_tokens: int = 0


class ChainExecutor(InlineExecutor):
    """Keeps, for each block, who holds it and the hash of all tokens up to its end, like a KV cache with contents.

    A step lasts `step_delay_s` and `token_delay_s` more for each token that it computes. Other `weights`, other tokens.
    """

    def __init__(
        self,
        vocab_size: int,
        num_blocks: int,
        block_size: int,
        step_delay_s: float = 0.0,
        token_delay_s: float = 0.0,
        weights: int = 0,
    ) -> None:
        self._vocab_size = vocab_size
        self._block_size = block_size
        self._step_delay_s, self._token_delay_s = step_delay_s, token_delay_s
        self._weights = weights
        self._sequences: dict[int, _ChainSequence] = {}
        self._num_holders = [0] * (num_blocks + 1)
        self._contents: list[bytes | None] = [None] * (num_blocks + 1)  # hash up to the block's end, once it is full

    def execute(self, plan: StepPlan) -> StepResult:
        """Check the plan and compute it. Raises `PlanViolation`."""
        delay_s = self._step_delay_s + self._token_delay_s * sum(item.num_tokens for item in plan.scheduled)
        if delay_s:
            time.sleep(delay_s)
        for sequence_id in plan.dropped_ids:
            self._drop(plan.step, sequence_id)
        for new in plan.new_sequences:
            if new.sequence_id in self._sequences:
                raise PlanViolation(plan.step, new.sequence_id, "sent as new, but not dropped before")
            self._sequences[new.sequence_id] = _ChainSequence(new, list(new.token_ids), [], _new_chain(self._weights))
        sampled: list[SampledToken] = []
        prompt_logprobs: list[PromptLogprobs] = []
        for item in plan.scheduled:
            sequence = self._sequences.get(item.sequence_id)
            if sequence is None:
                raise PlanViolation(plan.step, item.sequence_id, "scheduled, but never sent")
            self._take_blocks(plan.step, sequence, item)
            logprobs = self._compute(plan.step, sequence, item)
            if logprobs is not None:
                prompt_logprobs.append(logprobs)
            if item.samples:
                sampled.append(self._sample(sequence))
        return StepResult(plan.step, sampled, prompt_logprobs)

    def close(self) -> None:
        """Forget everything."""
        self._sequences.clear()

    def _drop(self, step: int, sequence_id: int) -> None:
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            raise PlanViolation(step, sequence_id, "dropped, but never sent")
        for block_id in sequence.block_ids:
            self._num_holders[block_id] -= 1

    def _take_blocks(self, step: int, sequence: _ChainSequence, item: ScheduledSequence) -> None:
        """Append the new blocks to the table. The leading ones may hold a prefix: then it must be this sequence's."""
        if item.start != sequence.num_computed_tokens:
            if sequence.block_ids or item.start % self._block_size:
                why = f"starts at {item.start}, computed are {sequence.num_computed_tokens}"
                raise PlanViolation(step, item.sequence_id, why)
            self._reuse_prefix(step, sequence, item)
        for block_id in item.new_block_ids:
            if block_id == NULL_BLOCK_ID or not 0 <= block_id < len(self._num_holders):
                raise PlanViolation(step, item.sequence_id, f"block {block_id} does not exist")
            self._num_holders[block_id] += 1
        sequence.block_ids += item.new_block_ids

    def _reuse_prefix(self, step: int, sequence: _ChainSequence, item: ScheduledSequence) -> None:
        for end in range(self._block_size, item.start + 1, self._block_size):
            block_id = item.new_block_ids[end // self._block_size - 1]
            sequence.chain.update(_packed(sequence.token_ids[end - self._block_size : end]))
            if self._contents[block_id] != sequence.chain.digest():
                raise PlanViolation(step, item.sequence_id, f"block {block_id} does not hold its prefix up to {end}")
        sequence.num_computed_tokens = item.start

    def _compute(self, step: int, sequence: _ChainSequence, item: ScheduledSequence) -> PromptLogprobs | None:
        """Write `num_tokens` tokens into the blocks and the chain."""
        position, end = item.start, item.start + item.num_tokens
        if not position < end <= len(sequence.token_ids) or (end == len(sequence.token_ids)) != item.samples:
            why = f"computes [{position}, {end}) of {len(sequence.token_ids)} tokens, samples = {item.samples}"
            raise PlanViolation(step, item.sequence_id, why)
        if end > len(sequence.block_ids) * self._block_size:
            raise PlanViolation(step, item.sequence_id, f"has no block for position {end - 1}")
        logprobs: list[TokenLogprobs] | None = None
        if sequence.new.sampling.prompt_logprobs is not None and position < sequence.new.num_prompt_tokens - 1:
            logprobs = self._prompt_logprobs(sequence, position, min(end, sequence.new.num_prompt_tokens - 1))
        while position < end:
            block_id = sequence.block_ids[position // self._block_size]
            if self._num_holders[block_id] != 1:
                raise PlanViolation(step, item.sequence_id, f"writes into block {block_id}, which others hold")
            next_position = min(end, position - position % self._block_size + self._block_size)
            sequence.chain.update(_packed(sequence.token_ids[position:next_position]))
            full = next_position % self._block_size == 0
            self._contents[block_id] = sequence.chain.digest() if full else None
            position = next_position
        sequence.num_computed_tokens = end
        return None if logprobs is None else PromptLogprobs(item.sequence_id, item.start, logprobs)

    def _sample(self, sequence: _ChainSequence) -> SampledToken:
        new = sequence.new
        may_end = len(sequence.token_ids) - new.num_prompt_tokens >= new.sampling.min_tokens
        token_id = _token_of(sequence.chain.digest(), self._vocab_size, () if may_end else new.ending_token_ids)
        sequence.token_ids.append(token_id)
        logprobs = None if new.sampling.logprobs is None else _chain_logprobs(token_id, token_id)
        return SampledToken(new.sequence_id, token_id, logprobs)

    def _prompt_logprobs(self, sequence: _ChainSequence, start: int, end: int) -> list[TokenLogprobs]:
        """Of the tokens at start + 1 .. end, given what stands before each."""
        token_ids = sequence.token_ids
        chosen = (next_chain_token(token_ids[: i + 1], self._vocab_size, (), self._weights) for i in range(start, end))
        return [_chain_logprobs(token_ids[start + 1 + i], token_id) for i, token_id in enumerate(chosen)]


def _chain_logprobs(token_id: int, chosen: int) -> TokenLogprobs:
    return TokenLogprobs(0.0 if token_id == chosen else UNLIKELY, [(chosen, 0.0)])
