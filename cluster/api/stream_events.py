"""The events of a streamed answer: each delta as JSON, encoded once, most of it ahead of time."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple, Protocol

import msgspec

from cluster.api.choice import Delta
from cluster.api.fan_out import run_choices
from cluster.api.prepared_call import PreparedCall, UsageTally
from cluster.api.resumption import Past
from cluster.api.schema import Usage
from cluster.api.serving import Serving
from cluster.api.stream_position import NOTHING, OPENED, EventIds, Position

_encode = msgspec.json.Encoder().encode
TEXT_MARK = "\ufdd0 text \ufdd0"  #: stands for the text in a `TextFrame`


class Event(NamedTuple):
    """One server-sent event; `id` says where the client stands once it has it, and is empty if nobody wants to know."""

    id: bytes
    data: bytes


class TextFrame:
    """A chunk of which only the text changes from event to event."""

    __slots__ = ("_after", "_before")

    def __init__(self, chunk: msgspec.Struct) -> None:
        self._before, self._after = _encode(chunk).split(_encode(TEXT_MARK))

    def data(self, text: str) -> bytes:
        """The chunk with this text."""
        return self._before + _encode(text) + self._after


class ChunkFormat(Protocol):
    """How one endpoint writes deltas."""

    def first(self, delta: Delta, usage: Usage | None) -> msgspec.Struct | None:
        """What comes before a choice's first delta."""

    def frame(self, choice: int) -> msgspec.Struct:
        """A chunk with nothing but `TEXT_MARK` as text, for this choice."""

    def chunk(self, delta: Delta, usage: Usage | None) -> msgspec.Struct:
        """A chunk with everything the delta holds."""

    def last(self, usage: Usage) -> msgspec.Struct:
        """The chunk that holds the usage and no choice."""


async def stream_events(
    serving: Serving, call: PreparedCall, chunks: ChunkFormat, with_ids: bool = False, past: Past | None = None
) -> AsyncGenerator[Event, None]:
    """The whole stream, or what a client that resumes it has not got.

    Raises before the first event whatever keeps the call from beginning.
    """
    position = past.position if past is not None else Position([NOTHING] * len(call.choices))
    ids = EventIds(call.id, position.have) if with_ids else None
    writer = _Writer(call, chunks, ids, position.have if past is not None else None)
    choices, generator = call.choices, serving.generator
    if past is not None:
        for delta in past.deltas():
            for event in writer.write(delta):
                yield event
        choices, generator = past.unfinished(), past.onward(generator)
        to_come = (choice.request.sampling.max_tokens - len(choice.request.output_token_ids) for choice in choices)
        call.record.resume(sum(to_come), past.was_granted)
    async with (
        serving.calls.run(call.record),
        aclosing(run_choices(generator, choices, call.context, call.origin.block_size)) as deltas,
    ):
        async for delta in deltas:
            for event in writer.write(delta):
                yield event
    if call.usage_in_stream and not position.at_end:
        yield Event(b"" if ids is None else ids.end(), _encode(chunks.last(writer.tally.usage())))


class _Writer:
    """Turns the deltas of one stream into events. `have`: up to this index of each choice nothing is written."""

    def __init__(
        self, call: PreparedCall, chunks: ChunkFormat, ids: EventIds | None, have: Sequence[int] | None
    ) -> None:
        self.tally = UsageTally(call, [max(0, index + 1) for index in have or ()])
        self._chunks, self._ids, self._have = chunks, ids, have
        self._with_usage = call.usage_in_every_chunk
        self._always_full = self._with_usage or bool(call.body.return_token_ids)
        self._frames: dict[int, TextFrame] = {}

    def write(self, delta: Delta) -> Sequence[Event]:
        """None, one, or at a choice's beginning two."""
        self.tally.add(delta)
        frame = self._frames.get(delta.choice)
        return self._begin(delta) if frame is None else self._go_on(delta, frame)

    def _go_on(self, delta: Delta, frame: TextFrame) -> Sequence[Event]:
        choice = delta.choice
        index = delta.next_index - bool(delta.token_ids)  # one more than the last token's, where only the end is told
        if self._have is not None and index <= self._have[choice]:
            return ()
        if self._always_full or delta.finish_reason is not None or delta.logprobs is not None:
            data = _encode(self._chunks.chunk(delta, self._usage()))
        elif delta.text:
            data = frame.data(delta.text)
        else:
            return ()
        return (Event(self._id(choice, index), data),)

    def _begin(self, delta: Delta) -> Sequence[Event]:
        choice = delta.choice
        opening = self._chunks.first(delta, self._usage())
        frame = self._frames[choice] = TextFrame(self._chunks.frame(choice))
        known = NOTHING if self._have is None else self._have[choice]
        opened = () if opening is None or known != NOTHING else (Event(self._id(choice, OPENED), _encode(opening)),)
        return (*opened, *self._go_on(delta, frame))

    def _usage(self) -> Usage | None:
        return self.tally.usage() if self._with_usage else None

    def _id(self, choice: int, index: int) -> bytes:
        return b"" if self._ids is None else self._ids.at(choice, index)
