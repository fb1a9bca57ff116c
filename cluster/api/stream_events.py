"""The events of a streamed answer: each delta as JSON, encoded once, most of it ahead of time."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple, Protocol

import msgspec

from cluster.api.choice import Delta
from cluster.api.fan_out import run_choices
from cluster.api.prepared_call import PreparedCall, UsageTally
from cluster.api.schema import Usage
from cluster.generation import Generator

_encode = msgspec.json.Encoder().encode
TEXT_MARK = "\ufdd0 text \ufdd0"  #: stands for the text in a `TextFrame`


class Event(NamedTuple):
    """One server-sent event; `id` names the last token it holds (`<request>:<index>`), empty if it holds none."""

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


async def stream_events(generator: Generator, call: PreparedCall, chunks: ChunkFormat) -> AsyncGenerator[Event, None]:
    """The whole stream. Raises before the first event whatever keeps the call from beginning."""
    tally = UsageTally(call)
    every = call.usage_in_every_chunk
    frames: dict[int, TextFrame] = {}
    names = [f"{choice.request.request_id}:".encode() for choice in call.choices]
    always_full = every or bool(call.body.return_token_ids)
    async with aclosing(run_choices(generator, call.choices, call.context, call.block_size)) as deltas:
        async for delta in deltas:
            tally.add(delta)
            choice = delta.choice
            plain = not (always_full or delta.finish_reason is not None or delta.logprobs is not None)
            frame = frames.get(choice)
            if frame is None:
                frame = frames[choice] = TextFrame(chunks.frame(choice))
                before = chunks.first(delta, tally.usage() if every else None)
                if before is not None:
                    yield Event(b"", _encode(before))
            if not plain:
                data = _encode(chunks.chunk(delta, tally.usage() if every else None))
            elif delta.text:
                data = frame.data(delta.text)
            else:
                continue
            yield Event(names[choice] + b"%d" % (delta.next_index - 1), data)
    if call.usage_in_stream:
        yield Event(b"", _encode(chunks.last(tally.usage())))
