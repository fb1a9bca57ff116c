"""What is kept of a running stream, and how another gateway goes on with it from there.

Kept are the request's body, what cannot be derived from it (`CallOrigin`), that it was given a replica (it is charged
from then on) and every chunk of tokens. To resume, the chunks go through the choices again: that restores the text's
state (characters, stop strings, offsets) and gives the events that the client has not got. Choices that have not ended
are then requests with that output before them. Tokens that the client has and the copy has not are computed again, and
not sent: the draw for (seed, index) is ever the same.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from cluster.api.choice import Choice, Delta
from cluster.api.prepared_call import CallOrigin, PreparedCall
from cluster.api.stream_position import NOTHING, Position
from cluster.generation import Generator, RequestContext
from engine.config import EngineInfo
from engine.request import FinishReason, GenerateRequest, TokenChunk, TokenLogprobs

Call = TypeVar("Call", bound=PreparedCall)

GRANTED = b""  #: an entry of a copy: the call was given a replica
ATTEMPTS_PER_EPOCH = 1 << 16  #: an attempt of a later epoch is newer than any of an earlier one


class KeptCall(msgspec.Struct, frozen=True, array_like=True):
    """What was asked."""

    path: str  #: of the endpoint
    body: bytes  #: as it came
    origin: CallOrigin


class KeptChunk(msgspec.Struct, frozen=True, array_like=True):
    """A `TokenChunk` of a choice."""

    choice: int
    index: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish: FinishReason | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    weights_revision: str = ""  #: that made the choice's tokens; with the first of them


encode_kept = msgspec.msgpack.Encoder().encode
decode_call = msgspec.msgpack.Decoder(KeptCall).decode
_decode_chunk = msgspec.msgpack.Decoder(KeptChunk).decode


def recorded(call: Call, add: Callable[[bytes], object]) -> Call:
    """The same call; `add` is told of its first replica, and of every chunk before its reader is woken."""
    call.record.on_granted = lambda: add(GRANTED)
    choice_of = {choice.request.request_id: choice.index for choice in call.choices}

    def on_chunk(chunk: TokenChunk, weights_revision: str) -> None:
        finish = chunk.finish if chunk.finish in (FinishReason.STOP, FinishReason.LENGTH) else None
        kept = KeptChunk(
            choice_of[chunk.request_id],
            chunk.index,
            chunk.token_ids,
            chunk.logprobs,
            finish,
            chunk.prompt_logprobs,
            chunk.num_cached_tokens,
            "" if chunk.index else weights_revision,
        )
        add(encode_kept(kept))

    return replace(call, context=replace(call.context, on_chunk=on_chunk))


class Past:
    """What a resumed stream has behind it. Read `deltas` to the end, then go on with `unfinished` choices `onward`."""

    def __init__(self, call: PreparedCall, journal: Sequence[bytes], position: Position, epoch: int) -> None:
        self.position = position
        self._choices, self._journal, self._epoch = call.choices, journal, epoch
        self._tokens: list[list[int]] = [[] for _ in call.choices]
        self._finished: set[int] = set()
        told = [call.origin.weights_revision if index > NOTHING else "" for index in position.have]
        self._revisions: list[str] = told

    @property
    def was_granted(self) -> bool:
        """Whether it ever left the queue."""
        return GRANTED in self._journal

    def deltas(self) -> Iterator[Delta]:
        """All that the copy holds; none reaches across the client's position. What does not follow on is passed by."""
        for entry in self._journal:
            if entry == GRANTED:
                continue
            kept = _decode_chunk(entry)
            tokens = self._tokens[kept.choice]
            if kept.choice in self._finished or kept.index != len(tokens):
                continue
            choice = self._choices[kept.choice]
            chunk = TokenChunk(
                choice.request.request_id,
                0,
                kept.index,
                kept.token_ids,
                kept.logprobs,
                kept.finish,
                kept.prompt_logprobs,
                kept.num_cached_tokens,
            )
            tokens += kept.token_ids
            self._revisions[kept.choice] = kept.weights_revision or self._revisions[kept.choice]
            for part in cut(chunk, self.position.have[kept.choice] + 1):
                if kept.choice not in self._finished:
                    delta = choice.feed(part)
                    if delta.finish_reason is not None:
                        self._finished.add(kept.choice)
                    yield delta

    def unfinished(self) -> list[Choice]:
        """The choices that have not ended, their requests going on after the copy."""
        choices = [choice for choice in self._choices if choice.index not in self._finished]
        for choice in choices:
            attempt = self._epoch * ATTEMPTS_PER_EPOCH
            tokens = self._tokens[choice.index]
            choice.request = replace(choice.request, output_token_ids=tokens, attempt=attempt)
        return choices

    def onward(self, generator: Generator) -> Generator:
        """The generator for them: with the weights that made what the client has, and no chunk across its position."""
        onward = zip(self._choices, self.position.have, self._revisions, strict=True)
        return _OnwardGenerator(
            generator, {choice.request.request_id: (have + 1, revision) for choice, have, revision in onward}
        )


class _OnwardGenerator:
    """A generator for requests of which each has a weights revision and an index where its chunks are cut."""

    def __init__(self, generator: Generator, of_request: dict[str, tuple[int, str]]) -> None:
        self._generator, self._of_request = generator, of_request

    def model_info(self, model: str) -> EngineInfo | None:
        return self._generator.model_info(model)

    async def stream(self, request: GenerateRequest, context: RequestContext) -> AsyncIterator[TokenChunk]:
        at, revision = self._of_request[request.request_id]
        chunks: Any = self._generator.stream(request, replace(context, weights_revision=revision))
        try:
            async for chunk in chunks:
                for part in cut(chunk, at):
                    yield part
        finally:
            await chunks.aclose()


def cut(chunk: TokenChunk, at: int) -> Sequence[TokenChunk]:
    """The chunk, in two where the token `at` is inside it."""
    count = at - chunk.index
    if not 0 < count < len(chunk.token_ids):
        return (chunk,)
    logprobs = chunk.logprobs
    before, after = (None, None) if logprobs is None else (logprobs[:count], logprobs[count:])
    return (
        replace(chunk, token_ids=chunk.token_ids[:count], logprobs=before, finish=None),
        replace(
            chunk,
            index=at,
            token_ids=chunk.token_ids[count:],
            logprobs=after,
            prompt_logprobs=None,
            num_cached_tokens=0,
        ),
    )
