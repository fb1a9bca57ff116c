"""The answers and stream chunks of `/v1/completions`."""

from collections.abc import Sequence
from typing import Literal, cast

import msgspec
from msgspec import UNSET

from cluster.api.choice import Delta
from cluster.api.logprob_format import completion_logprobs
from cluster.api.prepared_call import PreparedCall
from cluster.api.schema import Usage
from cluster.api.schema_completions import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    CompletionResponse,
)
from cluster.api.stream_events import TEXT_MARK
from cluster.text.detokenizer import Detokenizer
from engine.request import TokenLogprobs

_Reason = Literal["stop", "length"]


class Prompt(msgspec.Struct, frozen=True):
    """One prompt of a batch; `text` is None when the client gave ids."""

    token_ids: list[int]
    text: str | None = None


class CompletionCall(PreparedCall, frozen=True, kw_only=True):
    """A validated completion request."""

    body: CompletionRequest
    prompts: list[Prompt]

    def prompt_of(self, choice: int) -> Prompt:
        """The prompt that a choice answers."""
        return self.prompts[choice // self.num_answers]


class Echo(msgspec.Struct, frozen=True):
    """The prompt as it stands before an answer: its text, and where in it each token begins."""

    text: str
    offsets: list[int]

    @classmethod
    def of(cls, call: CompletionCall, choice: int) -> "Echo":
        """Nothing (empty) unless the client wants an echo."""
        if not call.body.echo:
            return cls("", [])
        prompt = call.prompt_of(choice)
        skip = call.body.skip_special_tokens is not False
        detokenizer = Detokenizer(call.model.tokenizer, [], skip_special_tokens=skip)
        offsets, pieces = [], []
        for token_id in prompt.token_ids:
            offsets.append(detokenizer.num_chars)
            pieces.append(detokenizer.feed((token_id,)))
        pieces.append(detokenizer.flush())
        return cls("".join(pieces) if prompt.text is None else prompt.text, offsets)


def completion(call: CompletionCall, choices: list[CompletionChoice], usage: Usage | None = None) -> CompletionResponse:
    """An answer, or a chunk of one."""
    return CompletionResponse(
        id=call.id,
        created=call.origin.created,
        model=call.model.name,
        system_fingerprint=call.origin.fingerprint,
        choices=choices,
        usage=usage if usage is not None or call.usage_in_stream else UNSET,
    )


class CompletionOutput:
    """One choice of an answer that is sent whole."""

    def __init__(self, call: CompletionCall, index: int) -> None:
        self._call, self._index = call, index
        self._echo = Echo.of(call, index)
        self._texts = [self._echo.text]
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs | None] = []
        self._offsets: list[int] = []
        self._last: Delta | None = None

    def add(self, delta: Delta) -> None:
        """Take the next delta."""
        if delta.prompt_logprobs is not None:
            self._logprobs += delta.prompt_logprobs
            self._offsets += self._echo.offsets
        self._texts.append(delta.text)
        self._token_ids += delta.token_ids
        if delta.logprobs is not None:
            self._logprobs += delta.logprobs
            self._offsets += [len(self._echo.text) + offset for offset in delta.offsets]
        self._last = delta

    def choice(self) -> CompletionChoice:
        """The whole."""
        assert self._last is not None
        call = self._call
        prompt = call.prompt_of(self._index)
        with_ids = bool(call.body.return_token_ids)
        spoken = [*prompt.token_ids, *self._token_ids] if call.body.echo else self._token_ids
        return CompletionChoice(
            index=self._index,
            text="".join(self._texts),
            logprobs=_logprobs(call, spoken, self._logprobs, self._offsets),
            finish_reason=cast(_Reason, self._last.finish_reason),
            stop_reason=self._last.stop_reason,
            token_ids=self._token_ids if with_ids else UNSET,
            prompt_token_ids=prompt.token_ids if with_ids else UNSET,
        )


class CompletionChunks:
    """The chunks of a stream (`cluster.api.stream_events.ChunkFormat`)."""

    def __init__(self, call: CompletionCall) -> None:
        self._call = call
        self._shifts: dict[int, int] = {}

    def first(self, delta: Delta, usage: Usage | None) -> msgspec.Struct | None:
        """The prompt, when it is to be echoed or its ids are to be shown."""
        call = self._call
        echo, prompt = Echo.of(call, delta.choice), call.prompt_of(delta.choice)
        self._shifts[delta.choice] = len(echo.text)
        if not (call.body.echo or call.body.return_token_ids):
            return None
        logprobs = None
        if delta.prompt_logprobs is not None:
            logprobs = _logprobs(call, prompt.token_ids, delta.prompt_logprobs, echo.offsets)
        choice = CompletionChoice(
            index=delta.choice,
            text=echo.text,
            logprobs=logprobs,
            token_ids=[] if call.body.return_token_ids else UNSET,
            prompt_token_ids=prompt.token_ids if call.body.return_token_ids else UNSET,
        )
        return completion(call, [choice], usage)

    def frame(self, choice: int) -> msgspec.Struct:
        """A chunk with the mark as text."""
        return completion(self._call, [CompletionChoice(index=choice, text=TEXT_MARK)])

    def chunk(self, delta: Delta, usage: Usage | None) -> msgspec.Struct:
        """Everything the delta holds."""
        call = self._call
        logprobs = None
        if delta.logprobs is not None:
            offsets = [self._shifts[delta.choice] + offset for offset in delta.offsets]
            logprobs = _logprobs(call, delta.token_ids, delta.logprobs, offsets)
        choice = CompletionChoice(
            index=delta.choice,
            text=delta.text,
            logprobs=logprobs,
            finish_reason=cast(_Reason | None, delta.finish_reason),
            stop_reason=UNSET if delta.finish_reason is None else delta.stop_reason,
            token_ids=delta.token_ids if call.body.return_token_ids else UNSET,
        )
        return completion(call, [choice], usage)

    def last(self, usage: Usage) -> msgspec.Struct:
        """The usage."""
        return completion(self._call, [], usage)


def _logprobs(
    call: CompletionCall, token_ids: list[int], logprobs: Sequence[TokenLogprobs | None], offsets: Sequence[int]
) -> CompletionLogprobs | None:
    if call.body.logprobs is None:
        return None
    return completion_logprobs(call.model.tokenizer, token_ids, logprobs, offsets, call.body.logprobs)
