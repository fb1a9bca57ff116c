"""What a client asks of an engine and what it hears back: the messages between `cluster` and `engine`.

Plain frozen values that cross processes as msgpack; nothing here knows a tensor, a socket or a clock.
"""

from enum import StrEnum

import msgspec


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"  #: an end-of-sequence or stop token; the gateway also says it for a stop string
    LENGTH = "length"  #: `max_tokens` reached
    ABORT = "abort"  #: ended from outside: the client left, or the deadline passed
    ERROR = "error"  #: the engine could not go on with this request; the chunk's `error` says why
    MIGRATE = "migrate"  #: the engine hands the request back (it drains, or has stopped): another one goes on


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose each next token. Values are validated at the gateway; engines trust them.

    `seed` is always set (the gateway draws one when the client gives none), so that the draw for
    (seed, index) is the same alone, in a batch, after preemption and after migration.
    """

    max_tokens: int
    seed: int
    min_tokens: int = 0
    temperature: float = 1.0  #: 0 is greedy
    top_k: int = 0  #: 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  #: over prompt and output, as in transformers
    presence_penalty: float = 0.0  #: over output only, as in the OpenAI API
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None  #: None: none; n: the sampled token's and the n best
    prompt_logprobs: int | None = None  #: the same for each prompt token but the first
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sequence to generate. Immutable; `(request_id, attempt)` names one try at it.

    `output_token_ids` holds what earlier attempts have emitted: the engine computes it like a prompt,
    counts it as output (penalties, `max_tokens`, the random index) and goes on at that index.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    attempt: int = 0
    output_token_ids: list[int] = []
    priority: int = 0  #: lower is sooner
    cache_salt: str = ""  #: prefix blocks are shared only under the same salt (one per tenant)
    adapter: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens known before the first step."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probabilities at one position, of the distribution before temperature and truncation."""

    logprob: float  #: of the token that stands there
    top: list[tuple[int, float]] = []  #: (token id, log probability), best first


class TokenChunk(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of one request: `token_ids[0]` is the output token number `index` (from 0).

    The last chunk of a request carries `finish` and may hold no token (an abort).
    """

    request_id: str
    attempt: int
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish: FinishReason | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None  #: with the first chunk only
    num_cached_tokens: int = 0  #: prompt tokens found in the prefix cache; with the first chunk
    error: str = ""  #: with `finish` ERROR; with MIGRATE: what the engine died of, empty if it is well


class EngineLoad(msgspec.Struct, frozen=True, array_like=True):
    """What an engine holds after a step: the ground for credit (`cluster.router.router`) and for `manta status`."""

    step: int  #: steps done since start; moves while work is running
    num_running: int
    num_waiting: int
    free_slots: int  #: sequences that could be admitted now: `max_num_seqs` - running - waiting
    free_blocks: int  #: KV blocks free or evictable, less what waiting sequences will need
    queued_tokens: int  #: prompt tokens known and not yet computed, over running and waiting
    num_accepted: int = 0  #: requests taken off the submitter since start, in their order, refused ones too
    num_preemptions: int = 0  #: since start
    num_cached_tokens: int = 0  #: prompt tokens found in the prefix cache since start
    num_prompt_tokens: int = 0  #: prompt tokens admitted since start
    num_output_tokens: int = 0  #: tokens sampled and delivered since start
    remaining_tokens: int = 0  #: most tokens that running and waiting sequences may still generate
    num_recomputed_tokens: int = 0  #: positions computed again after a preemption, since start
