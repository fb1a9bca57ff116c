"""CallRecord: what is known of one call of the API, from its arrival to its end.

The gateway's layers fill it in as the call goes by; `cluster.calls.calls` tells whoever wants to know. Times are of one
steady clock (`time.monotonic`, which is asyncio's), in seconds; None: has not happened.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec

from cluster.auth.principal import Principal


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls, by which way, since when. Every protocol makes one before it prepares a call."""

    principal: Principal = Principal()
    way: str = "handle"  #: the endpoint as its protocol names it: an HTTP path, a gRPC method
    request_id: str = ""  #: the client's own, or one that was given to it
    traceparent: str = ""  #: W3C trace context, as it came
    arrived_at: float | None = None  #: None: when the call was prepared
    timeout_s: float | None = None  #: it waits no longer than that, from now on; None: as configured


class Attempt(msgspec.Struct):
    """One try of one of the call's requests at one replica."""

    replica_id: str
    asked_at: float  #: of a router shard
    waited_s: float  #: since then, in a shard's queue
    granted_at: float
    last_token_at: float | None  #: of the request that it is an attempt at, in earlier attempts too
    first_token_at: float | None = None
    ended_at: float | None = None
    why: str = ""  #: it ended too early; empty: it has finished, or runs


class TokenMeter(Protocol):
    """Counts tokens as they come."""

    def began_to_answer(self, record: "CallRecord", attempt: Attempt) -> None:
        """The first token of an attempt has come."""

    def got_tokens(self, num_tokens: int, gap_s: float | None) -> None:
        """So long after the request's last ones; None: they are its first."""


class CallRecord:
    """One call. `headers`: what is to be added to the answer's head, known once it has been admitted."""

    __slots__ = (
        "arrived_at",
        "attempts",
        "call_id",
        "caller",
        "ended_at",
        "first_token_at",
        "headers",
        "is_resumed",
        "last_token_at",
        "max_output_tokens",
        "meter",
        "model",
        "num_cached_tokens",
        "num_choices",
        "num_output_tokens",
        "num_prompt_tokens",
        "num_prompts",
        "on_granted",
        "outcome",
        "prepared_at",
        "status",
        "was_charged",
    )

    def __init__(self, call_id: str, model: str, caller: Caller, prepared_at: float) -> None:
        self.call_id, self.model, self.caller, self.prepared_at = call_id, model, caller, prepared_at
        self.arrived_at = prepared_at if caller.arrived_at is None else caller.arrived_at
        self.is_resumed = False  #: goes on with a stream that another call began
        self.was_charged = False  #: that one was given a replica: request and prompts are on its account
        self.on_granted: Callable[[], object] | None = None  #: told when it is given its first replica
        self.num_choices = 0
        self.num_prompts = 1
        self.num_prompt_tokens = 0  #: each prompt once
        self.max_output_tokens = 0  #: over all choices, those emitted before a resumption not counted
        self.num_output_tokens = 0  #: handed over by engines, those behind a stop string too
        self.num_cached_tokens = 0  #: of the prompts, found in a prefix cache
        self.attempts: list[Attempt] = []
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.ended_at: float | None = None
        self.outcome = ""  #: `ok`, `client_left`, or the code of the error that the client was told
        self.status = 0  #: of the answer as HTTP has it; 499: the client left
        self.headers: list[tuple[bytes, bytes]] = []
        self.meter: TokenMeter | None = None  #: while the call runs

    @property
    def tenant(self) -> str:
        """Whose call it is."""
        return self.caller.principal.tenant

    @property
    def granted_at(self) -> float | None:
        """When the first of its requests was given a replica: until then it has waited in a queue."""
        return self.attempts[0].granted_at if self.attempts else None

    @property
    def num_migrations(self) -> int:
        """Attempts that ended too early."""
        return sum(bool(attempt.why) for attempt in self.attempts)

    def began_attempt(self, attempt: Attempt) -> None:
        """One of its requests is submitted to a replica; the rest of the attempt will be noted there."""
        if not self.attempts and self.on_granted is not None:
            self.on_granted()
        self.attempts.append(attempt)

    def got_tokens(self, attempt: Attempt, num_tokens: int, num_cached_tokens: int, now: float) -> None:
        """Tokens of one of its requests have come."""
        self.num_output_tokens += num_tokens
        self.last_token_at = now
        before, attempt.last_token_at = attempt.last_token_at, now
        meter = self.meter
        if attempt.first_token_at is None:
            attempt.first_token_at = now
            if self.first_token_at is None:
                self.first_token_at = now
            if any(attempt is one for one in self.attempts[: self.num_prompts]):
                self.num_cached_tokens += num_cached_tokens
            if meter is not None:
                meter.began_to_answer(self, attempt)
        if meter is not None:
            meter.got_tokens(num_tokens, None if before is None else now - before)

    def resume(self, max_output_tokens: int, was_charged: bool) -> None:
        """It goes on with what another call began; so much can still come."""
        self.is_resumed, self.max_output_tokens, self.was_charged = True, max_output_tokens, was_charged

    def end(self, outcome: str, status: int, now: float) -> None:
        """It is over; what comes later counts for nothing."""
        self.outcome, self.status, self.ended_at = outcome, status, now
