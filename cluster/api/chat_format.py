"""The answers and stream chunks of `/v1/chat/completions`."""

from typing import Literal, cast

import msgspec
from msgspec import UNSET

from cluster.api.choice import Delta
from cluster.api.logprob_format import chat_logprobs
from cluster.api.prepared_call import PreparedCall
from cluster.api.schema import Usage
from cluster.api.schema_chat import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    ChatRequest,
    ChatResponse,
    MessageDelta,
)
from cluster.api.stream_events import TEXT_MARK
from engine.request import TokenLogprobs

_Reason = Literal["stop", "length"]


class ChatCall(PreparedCall, frozen=True, kw_only=True):
    """A validated chat request."""

    body: ChatRequest

    @property
    def prompt_token_ids(self) -> list[int]:
        """The one prompt that all choices answer."""
        return self.choices[0].request.prompt_token_ids


def chat_response(call: ChatCall, choices: list[ChatChoice], usage: Usage) -> ChatResponse:
    """The whole answer."""
    return ChatResponse(
        id=call.id,
        created=call.origin.created,
        model=call.model.name,
        system_fingerprint=call.origin.fingerprint,
        choices=choices,
        usage=usage,
        prompt_token_ids=call.prompt_token_ids if call.body.return_token_ids else UNSET,
    )


class ChatOutput:
    """One choice of an answer that is sent whole."""

    def __init__(self, call: ChatCall, index: int) -> None:
        self._call, self._index = call, index
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._last: Delta | None = None

    def add(self, delta: Delta) -> None:
        """Take the next delta."""
        self._texts.append(delta.text)
        self._token_ids += delta.token_ids
        self._logprobs += delta.logprobs or ()
        self._last = delta

    def choice(self) -> ChatChoice:
        """The whole."""
        assert self._last is not None
        body = self._call.body
        return ChatChoice(
            index=self._index,
            message=AnswerMessage(content="".join(self._texts)),
            logprobs=_logprobs(self._call, self._token_ids, self._logprobs) if body.logprobs else None,
            finish_reason=cast(_Reason, self._last.finish_reason),
            stop_reason=self._last.stop_reason,
            token_ids=self._token_ids if body.return_token_ids else UNSET,
        )


class ChatChunks:
    """The chunks of a stream (`cluster.api.stream_events.ChunkFormat`)."""

    def __init__(self, call: ChatCall) -> None:
        self._call = call

    def first(self, delta: Delta, usage: Usage | None) -> msgspec.Struct | None:
        """The role."""
        opening = MessageDelta(role="assistant", content="")
        ids = self._call.prompt_token_ids if self._call.body.return_token_ids else UNSET
        return self._chunk([ChatChunkChoice(index=delta.choice, delta=opening)], usage, ids)

    def frame(self, choice: int) -> msgspec.Struct:
        """A chunk with the mark as text."""
        return self._chunk([ChatChunkChoice(index=choice, delta=MessageDelta(content=TEXT_MARK))], None)

    def chunk(self, delta: Delta, usage: Usage | None) -> msgspec.Struct:
        """Everything the delta holds."""
        choice = ChatChunkChoice(
            index=delta.choice,
            delta=MessageDelta(content=delta.text or None),
            logprobs=None if delta.logprobs is None else _logprobs(self._call, delta.token_ids, delta.logprobs),
            finish_reason=cast(_Reason | None, delta.finish_reason),
            stop_reason=UNSET if delta.finish_reason is None else delta.stop_reason,
            token_ids=delta.token_ids if self._call.body.return_token_ids else UNSET,
        )
        return self._chunk([choice], usage)

    def last(self, usage: Usage) -> msgspec.Struct:
        """The usage."""
        return self._chunk([], usage)

    def _chunk(
        self, choices: list[ChatChunkChoice], usage: Usage | None, prompt: list[int] | msgspec.UnsetType = UNSET
    ) -> ChatChunk:
        call = self._call
        return ChatChunk(
            id=call.id,
            created=call.origin.created,
            model=call.model.name,
            system_fingerprint=call.origin.fingerprint,
            choices=choices,
            usage=usage if usage is not None or call.usage_in_stream else UNSET,
            prompt_token_ids=prompt,
        )


def _logprobs(call: ChatCall, token_ids: list[int], logprobs: list[TokenLogprobs]) -> ChatLogprobs:
    return chat_logprobs(call.model.tokenizer, token_ids, logprobs, call.body.top_logprobs or 0)
