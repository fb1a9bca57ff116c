"""Flight: one request in its gateway: its journal, the attempt that runs, and who reads.

The journal holds the tokens that were handed to the reader, whichever attempts made them. A chunk of another attempt
is dropped (fencing), so is one whose tokens are all in the journal; a gap ends the attempt, never the stream.
"""

import asyncio
from collections import deque
from enum import Enum, auto
from time import monotonic
from typing import NamedTuple

import msgspec

from cluster.calls.record import Attempt
from cluster.errors import ApiError, DeadlineExceeded
from cluster.frames import Enqueue, Grant, Outcome
from cluster.generation import RequestContext
from cluster.streams.descriptor import Identity
from engine.config import EngineInfo
from engine.request import FinishReason, GenerateRequest, TokenChunk

MOST_AVOIDED = 16  #: a longer list would name replicas that are long gone
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 0.8


class End(Enum):
    """How an attempt ended."""

    FINISHED = auto()  #: and the request with it
    DIED = auto()  #: with its replica, or its engine, or that was left as stuck
    SILENT = auto()  #: its replica said nothing for too long and was left
    HANDED_BACK = auto()  #: the replica drains
    FAULTY = auto()  #: tokens are missing, or the engine could not compute this one
    REFUSED = auto()  #: the replica takes nothing now
    UNFIT = auto()  #: the request is at fault
    ABANDONED = auto()  #: the reader left, or the deadline has come


OUTCOMES = {
    End.FINISHED: Outcome.OK,
    End.DIED: Outcome.FAILED,
    End.SILENT: Outcome.FAILED,
    End.HANDED_BACK: Outcome.NEUTRAL,
    End.FAULTY: Outcome.FAILED,
    End.REFUSED: Outcome.FAILED,
    End.UNFIT: Outcome.NEUTRAL,
    End.ABANDONED: Outcome.NEUTRAL,
}


class AttemptEnd(NamedTuple):
    """An attempt is over."""

    end: End
    why: str = ""


_FINISHED = AttemptEnd(End.FINISHED)
_BREAKS = {
    FinishReason.ERROR: End.FAULTY,
    FinishReason.ABORT: End.FAULTY,  # this gateway forgets what it aborts, so this is somebody else's
    FinishReason.MIGRATE: End.HANDED_BACK,
}


class Flight:
    """Where the request stands: it waits at `shard`, or runs on `replica_id`, or is held back (neither)."""

    __slots__ = (
        "_asked_at",
        "_attempt",
        "_attempt_record",
        "_chunks",
        "_error",
        "_is_deaf",
        "_last_token_at",
        "_waiter",
        "asked_at",
        "avoid",
        "avoided",
        "context",
        "deadline",
        "identity",
        "is_over",
        "is_tried",
        "journal",
        "num_cached_tokens",
        "num_faults",
        "num_moves",
        "pause_s",
        "replica_id",
        "request",
        "running_revision",
        "shard",
        "weights_revision",
    )

    def __init__(self, request: GenerateRequest, context: RequestContext, deadline: float, identity: Identity) -> None:
        self.request, self.context, self.deadline, self.identity = request, context, deadline, identity
        self._attempt = request.attempt
        self.journal: list[int] = list(request.output_token_ids)
        self.shard: int | None = None  #: it waits there, or that one has granted its replica
        self.replica_id: str | None = None  #: runs there
        self.running_revision = ""  #: of the replica it runs on
        self.weights_revision = context.weights_revision  #: of all tokens in the journal
        self.avoid: list[str] = []  #: replicas that have failed it
        self.avoided: list[str] = []  #: what the shard was last told to avoid: these, and who is of no use now
        self.num_faults = 0  #: in a row, without a token in between
        self.num_moves = 0
        self.asked_at: float | None = None  #: when this attempt was first asked for; loop time
        self.pause_s = FIRST_PAUSE_S  #: before it asks again, if what it was granted is of no use
        self.num_cached_tokens = 0  #: of the attempt that runs
        self._is_deaf = False  #: the attempt is over, or all is: what is still said counts for nothing
        self.is_over = False  #: its end is known; the reader may not have come to it yet
        self.is_tried = False  #: runs to show whether it kills its replica (`cluster.streams.poison_rule`)
        self._asked_at = 0.0  #: as `asked_at`, on the records' clock
        self._attempt_record: Attempt | None = None  #: of the attempt that runs, where records are kept
        self._last_token_at: float | None = None  #: of earlier attempts, likewise
        self._chunks: deque[TokenChunk] = deque()
        self._error: ApiError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def key(self) -> tuple[str, int]:
        return (self.request.request_id, self._attempt)

    @property
    def is_waiting(self) -> bool:
        """A grant is welcome."""
        return self.replica_id is None and not self.is_over

    @property
    def num_emitted(self) -> int:
        """Tokens of the present attempt."""
        return len(self.journal) - len(self.request.output_token_ids)

    # What a replica says

    def accept(self, chunk: TokenChunk) -> AttemptEnd | None:
        """Take a chunk into the journal, or drop it; returns how it ends the attempt, if it does."""
        if chunk.attempt != self._attempt or self._is_deaf:
            return None
        finish = chunk.finish
        if chunk.index != len(self.journal):
            return self._misplaced(chunk)
        if chunk.num_cached_tokens:
            self.num_cached_tokens = chunk.num_cached_tokens
        if finish in _BREAKS:
            return self._broken(chunk)
        self._hand_over(chunk)
        if finish is None:
            return None
        self._is_deaf = self.is_over = True
        return _FINISHED

    def _misplaced(self, chunk: TokenChunk) -> AttemptEnd | None:
        known = len(self.journal)
        if chunk.index < known and chunk.finish is None and chunk.index + len(chunk.token_ids) <= known:
            return None
        self._is_deaf = True
        if chunk.index > known:
            return AttemptEnd(End.FAULTY, f"tokens {known} to {chunk.index - 1} of the stream were lost")
        return AttemptEnd(End.FAULTY, f"token {chunk.index} of the stream came twice, the second time with more")

    def _broken(self, chunk: TokenChunk) -> AttemptEnd:
        """The engine ends the attempt, not the stream; what it computed before counts."""
        assert chunk.finish is not None
        self._is_deaf = True
        if chunk.token_ids:
            self._hand_over(msgspec.structs.replace(chunk, finish=None, error=""))
        died = chunk.finish is FinishReason.MIGRATE and chunk.error
        return AttemptEnd(End.DIED if died else _BREAKS[chunk.finish], chunk.error or "the engine gave it up")

    def _hand_over(self, chunk: TokenChunk) -> None:
        """To the journal, to whoever keeps a copy of it, to the reader."""
        self.journal += chunk.token_ids
        record, attempt = self.context.record, self._attempt_record
        if record is not None and attempt is not None and chunk.token_ids:
            record.got_tokens(attempt, len(chunk.token_ids), chunk.num_cached_tokens, monotonic())
        if self.context.on_chunk is not None:
            self.context.on_chunk(chunk, self.running_revision)
        self._chunks.append(chunk)
        self._wake()

    # What becomes of it

    def submitted(self, grant: Grant, weights_revision: str) -> GenerateRequest:
        """It runs there now; returns what to submit."""
        self.replica_id, self.running_revision = grant.replica_id, weights_revision
        self.pause_s = FIRST_PAUSE_S
        if self.context.record is not None:
            self._attempt_record = attempt = Attempt(
                grant.replica_id, self._asked_at, grant.waited_s, monotonic(), self._last_token_at
            )
            self.context.record.began_attempt(attempt)
        return self.request

    def left_replica(self, why: str) -> None:
        """Its attempt is over, too early if there is a `why`: nothing that is still said of it counts."""
        attempt, self._attempt_record = self._attempt_record, None
        if attempt is not None:
            attempt.ended_at, attempt.why = monotonic(), why
            self._last_token_at = attempt.last_token_at
        self._is_deaf = True
        if self.num_emitted:
            self.weights_revision = self.running_revision
            self.num_faults = 0
        self.replica_id = self.shard = None

    def next_attempt(self) -> None:
        """Go on behind the journal, with all else as it was; what the prompt was asked for has been told."""
        sampling = self.request.sampling
        if self.journal and sampling.prompt_logprobs is not None:
            sampling = msgspec.structs.replace(sampling, prompt_logprobs=None)
        self._attempt += 1
        self._is_deaf = False
        self.request = msgspec.structs.replace(
            self.request, attempt=self._attempt, output_token_ids=list(self.journal), sampling=sampling
        )
        self.num_cached_tokens = 0
        self.num_moves, self.asked_at = 0, None

    def finish_if_complete(self, info: EngineInfo | None) -> bool:
        """End it here if the journal holds all that it asked for, and only the word that it ended was lost.

        `info`: of the model's engines; what ends a sequence on other weights says nothing about this one.
        """
        sampling, journal = self.request.sampling, self.journal
        is_known = info is not None and info.weights_revision == self.weights_revision
        eos = info.eos_token_ids if info is not None and is_known and not sampling.ignore_eos else ()
        finish = None
        if journal and journal[-1] in (*eos, *sampling.stop_token_ids) and len(journal) > sampling.min_tokens:
            finish = FinishReason.STOP
        elif len(journal) >= sampling.max_tokens:
            finish = FinishReason.LENGTH
        if finish is None:
            return False
        self.is_over = True
        self._hand_over(TokenChunk(self.request_id, self._attempt, len(journal), [], finish=finish))
        return True

    def descriptor(self, now: float, unusable: list[str]) -> Enqueue:
        """What a shard is told, at loop time `now`; `unusable`: replicas that this gateway cannot submit to."""
        is_known = self.asked_at is not None
        if self.asked_at is None:
            self.asked_at, self._asked_at = now, monotonic()
        self.avoided = [*self.avoid, *(replica_id for replica_id in unusable if replica_id not in self.avoid)]
        request, identity = self.request, self.identity
        num_output = len(request.output_token_ids)
        return Enqueue(
            request.request_id,
            self._attempt,
            self.context.model,
            self.context.tenant,
            request.priority,
            self.deadline - now,
            request.num_tokens,
            request.sampling.max_tokens - num_output,
            num_output,
            identity.block_hashes,
            self.context.session,
            identity.digest,
            self.weights_revision,
            self.avoided,
            now - self.asked_at,
            self.num_moves,
            is_known,
        )

    def shun(self, replica_id: str) -> None:
        """That replica has failed it."""
        self.avoid = [*self.avoid[1 - MOST_AVOIDED :], replica_id]

    def pause(self) -> float:
        """How long to wait before asking again; longer each time until something is submitted."""
        pause_s, self.pause_s = self.pause_s, min(2 * self.pause_s, LONGEST_PAUSE_S)
        return pause_s

    # The reader

    def fail(self, error: ApiError) -> None:
        """The reader gets this after the tokens that are here."""
        if not self.is_over:
            self._is_deaf = self.is_over = True
            self._error = error
            self._wake()

    def expire(self) -> None:
        """The deadline has come."""
        self.fail(DeadlineExceeded(f"the request did not finish within {self.context.timeout_s:.3g} s"))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next_chunk(self) -> TokenChunk:
        """The next chunk; raises what the flight failed with."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._chunks.popleft()
