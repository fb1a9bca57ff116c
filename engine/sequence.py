"""One request's mutable state inside one engine: its tokens, its blocks and how far it is computed."""

from dataclasses import dataclass, field
from enum import Enum, auto

from engine.request import GenerateRequest, TokenLogprobs
from engine.step import NewSequence


class SequenceStatus(Enum):
    """Where a sequence is: admit, preempt, finish and abort are the moves between these."""

    WAITING = auto()  #: holds no blocks; the ranks do not know it
    RUNNING = auto()  #: holds blocks; the ranks know it or will with the next plan
    ENDED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens known so far and how many of them are computed; only the scheduler and its parts write here.

    `num_computed_tokens` catches up with `num_tokens`; there is no other phase.
    """

    sequence_id: int
    request: GenerateRequest
    ending_token_ids: tuple[int, ...]  #: eos (unless ignored) and stop tokens
    token_ids: list[int]  #: prompt, then output
    precedence: tuple[int, int]  #: (priority, arrival number): smaller is served first, preempted last
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0  #: their keys and values are in the cache
    num_scheduled_tokens: int = 0  #: these, and those that steps under way compute
    block_ids: list[int] = field(default_factory=list)  #: block i holds positions i * block_size and on
    block_hashes: list[bytes] = field(default_factory=list)  #: of the leading full blocks, as far as needed yet
    num_registered_blocks: int = 0  #: leading blocks that the prefix cache knows
    frontier_hash: bytes | None = None  #: of the full block being computed next, as noted in the KV cache manager
    was_preempted: bool = False
    num_lost_tokens: int = 0  #: leading positions that were computed before it was preempted
    num_cached_tokens: int = 0  #: prompt tokens found in the prefix cache when first admitted
    prompt_logprobs: list[TokenLogprobs | None] | None = None  #: gathered until the first chunk

    @property
    def num_tokens(self) -> int:
        """Tokens known: prompt and output."""
        return len(self.token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt; what earlier attempts emitted is output."""
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens of the answer, earlier attempts included: the index of the next one."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens known and not computed: one while decoding."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_unscheduled_tokens(self) -> int:
        """Tokens known that no step has computed or is computing: none while the next one is being sampled."""
        return len(self.token_ids) - self.num_scheduled_tokens

    @property
    def is_in_flight(self) -> bool:
        """Whether a step under way computes some of its tokens."""
        return self.num_scheduled_tokens > self.num_computed_tokens

    @property
    def num_remaining_tokens(self) -> int:
        """Most tokens still to be sampled."""
        return self.request.sampling.max_tokens - self.num_output_tokens

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether its first chunk, still to come, carries log probabilities of the prompt."""
        return self.request.sampling.prompt_logprobs is not None and self.num_output_tokens == 0

    def as_new(self) -> NewSequence:
        """What ranks are told that do not know it."""
        token_ids = self.token_ids.copy()
        return NewSequence(
            self.sequence_id, token_ids, self.num_prompt_tokens, self.request.sampling, self.ending_token_ids
        )


def precedence_of(sequence: Sequence) -> tuple[int, int]:
    """Sort key of the waiting and the running queue."""
    return sequence.precedence
