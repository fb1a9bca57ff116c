"""Who may join the running batch and when, what padding the batch pays, and when its tokens are handed out.

`ContinuousBatching` is how Manta serves. `DynamicBatching` and `StaticBatching` run on the same scheduler and
kernels, so that the difference between them can be measured.
"""

from typing import Protocol

import msgspec

from engine.config import Batching, EngineConfig
from engine.request import FinishReason, TokenChunk


class BatchingPolicy(Protocol):
    """What the scheduler asks around each step; a policy counts sequences and never touches one."""

    def arrived(self, now: float) -> None:
        """A sequence has come to wait."""

    def places(self, num_running: int, num_waiting: int, now: float) -> int:
        """How many waiting sequences may join in this step."""

    def joined(self, num_tokens: int) -> None:
        """A sequence with `num_tokens` tokens to compute took one of the places."""

    def close_batch(self) -> None:
        """The KV cache holds no more: nobody else joins this batch."""

    def padding_tokens(self, num_running: int, budget: int) -> int:
        """Tokens, at most `budget`, to compute for nothing in this step."""

    def deliver(self, chunks: list[TokenChunk], num_running: int, num_waiting: int) -> list[TokenChunk]:
        """What to hand out now of these and of chunks kept back earlier."""

    def wake_at(self, num_running: int, num_waiting: int) -> float | None:
        """When to schedule again though nothing happens; None: not before something arrives."""


class ContinuousBatching:
    """Sequences join and leave at every step."""

    def arrived(self, now: float) -> None:
        """Nobody waits for company."""

    def places(self, num_running: int, num_waiting: int, now: float) -> int:
        """Everybody may join."""
        return num_waiting

    def joined(self, num_tokens: int) -> None:
        """Joining changes nothing for those who come later."""

    def close_batch(self) -> None:
        """The batch is never closed: they join when blocks are free."""

    def padding_tokens(self, num_running: int, budget: int) -> int:
        """A flat batch needs no padding."""
        return 0

    def deliver(self, chunks: list[TokenChunk], num_running: int, num_waiting: int) -> list[TokenChunk]:
        """Tokens go out at once."""
        return chunks

    def wake_at(self, num_running: int, num_waiting: int) -> float | None:
        """There is nothing to wait for."""
        return None


class DynamicBatching:
    """A batch is closed by size, or `timeout_s` after its first sequence came; nobody joins while it runs."""

    def __init__(self, batch_size: int, timeout_s: float) -> None:
        self._batch_size = batch_size
        self._timeout_s = timeout_s
        self._closes_at: float | None = None  # when the sequences now waiting stop waiting for company
        self._places = 0  # of the closed batch, not taken yet: a long batch joins over several steps

    def arrived(self, now: float) -> None:
        """The first to come starts the clock."""
        if self._closes_at is None:
            self._closes_at = now + self._timeout_s

    def places(self, num_running: int, num_waiting: int, now: float) -> int:
        """Places left in the closed batch; closes the next one when the last has ended and it is time."""
        self._places = min(self._places, num_waiting)
        if num_running == 0 and self._places == 0 and num_waiting > 0:
            if self._closes_at is None:
                self.arrived(now)
            assert self._closes_at is not None
            if num_waiting >= self._batch_size or now >= self._closes_at:
                self._places = min(self._batch_size, num_waiting)
                self._closes_at = None
                if num_waiting > self._places:
                    self.arrived(now)
        return self._places

    def joined(self, num_tokens: int) -> None:
        """One place less."""
        self._places -= 1

    def close_batch(self) -> None:
        """Who found no blocks joins the next batch."""
        self._places = 0

    def padding_tokens(self, num_running: int, budget: int) -> int:
        """A flat batch needs no padding."""
        return 0

    def deliver(self, chunks: list[TokenChunk], num_running: int, num_waiting: int) -> list[TokenChunk]:
        """Tokens go out at once."""
        return chunks

    def wake_at(self, num_running: int, num_waiting: int) -> float | None:
        """When the waiting batch closes by time."""
        return self._closes_at if num_running == 0 and num_waiting > 0 else None


class StaticBatching(DynamicBatching):
    """A padded batch that waits for its longest, as a plain `generate()` call does.

    It starts when full, or when nobody has come for `timeout_s`. Each member pays for the longest prompt, and one
    token at each step after its end. All tokens are handed out when the batch has ended.
    """

    def __init__(self, batch_size: int, timeout_s: float) -> None:
        super().__init__(batch_size, timeout_s)
        self._num_members = 0
        self._longest = 0  # tokens to compute of the longest member
        self._num_owed = 0  # padding not computed yet: it shares the step's token budget
        self._kept: dict[tuple[str, int], TokenChunk] = {}  # by request and attempt: tokens kept back

    def arrived(self, now: float) -> None:
        """Each arrival starts the clock again."""
        self._closes_at = now + self._timeout_s

    def joined(self, num_tokens: int) -> None:
        """Pad the shorter to the longer."""
        super().joined(num_tokens)
        longest = max(self._longest, num_tokens)
        self._num_owed += (longest - self._longest) * self._num_members + longest - num_tokens
        self._longest = longest
        self._num_members += 1

    def padding_tokens(self, num_running: int, budget: int) -> int:
        """What is still owed for prompts, and one token for each member that has ended."""
        self._num_owed += self._num_members - num_running
        paid = min(self._num_owed, budget)
        self._num_owed -= paid
        return paid

    def deliver(self, chunks: list[TokenChunk], num_running: int, num_waiting: int) -> list[TokenChunk]:
        """Everything when the batch has ended; before that only what was aborted, failed or handed back."""
        delivered = []
        for chunk in chunks:
            key = (chunk.request_id, chunk.attempt)
            kept = self._kept.pop(key, None)
            self._kept[key] = chunk if kept is None else _merged(kept, chunk)
            if chunk.finish in (FinishReason.ABORT, FinishReason.ERROR, FinishReason.MIGRATE):
                delivered.append(self._kept.pop(key))
        if num_running == 0 and min(self._places, num_waiting) == 0:
            delivered += self._kept.values()
            self._kept = {}
            self._num_members = self._longest = self._num_owed = 0
        return delivered


def _merged(first: TokenChunk, second: TokenChunk) -> TokenChunk:
    """Both chunks of one request as one."""
    logprobs = None if first.logprobs is None else first.logprobs + (second.logprobs or [])
    return msgspec.structs.replace(
        first,
        token_ids=first.token_ids + second.token_ids,
        logprobs=logprobs,
        finish=second.finish,
        error=second.error,
    )


def batching_policy(config: EngineConfig) -> BatchingPolicy:
    """The policy that the configuration names."""
    match config.batching:
        case Batching.CONTINUOUS:
            return ContinuousBatching()
        case Batching.DYNAMIC:
            return DynamicBatching(config.batch_size, config.batch_timeout_s)
        case Batching.STATIC:
            return StaticBatching(config.batch_size, config.batch_timeout_s)
