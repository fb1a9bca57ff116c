"""Server-sent events on an ASGI connection: the first at once, those that are ready together in one write."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from starlette.types import Send

from cluster.api.stream_events import Event
from cluster.gateway.error_style import OPENAI_STYLE, ErrorStyle
from cluster.gateway.http_errors import answerable
from cluster.gateway.http_exchange import Header

T = TypeVar("T")

MAX_BUFFER_BYTES = 64 * 1024  #: events of one stream kept for a slow reader; later ones wait as tokens
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ReaderStalled(Exception):
    """The client has read nothing for too long."""


def wants_ids(accept: str | None) -> bool:
    """Whether a client knows event streams well enough to be sent `id:` lines: its Accept header names the type.

    Several popular clients take every event for one `data:` line and fail on anything else.
    """
    return "text/event-stream" in (accept or "")


def encode_event(event: Event) -> bytes:
    """JSON holds no raw line ends, so neither field can break out of its line."""
    if event.id:
        return b"id: %b\ndata: %b\n\n" % event
    return b"data: %b\n\n" % event.data


def nothing() -> None:
    """Before a write of which nobody else need know."""


async def send_stream(
    send: Send,
    events: AsyncGenerator[Event, None],
    headers: Sequence[Header],
    stall_s: float,
    before_write: Callable[[], None] = nothing,
    style: ErrorStyle = OPENAI_STYLE,
    done: bytes = DONE,
) -> None:
    """Send all events, then `[DONE]`. Nothing is sent if the first event cannot be had (the error is raised).

    `headers` are read once it is there, and go with the head. A later failure is told by one error event in this
    style, and the stream ends without `done`.
    """
    async with aclosing(events):
        writer = _Writer(send, stall_s, before_write)
        first = await anext(events, None)
        if first is not None:
            writer.add(encode_event(first))
        await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *headers]})
        try:
            while True:
                writer.add(encode_event(await _FlushBeforeWaiting(anext(events), writer.flush)))
                if writer.is_full:
                    await writer.flush()
        except StopAsyncIteration:
            writer.add(done)
        except (ReaderStalled, OSError):
            raise
        except Exception as error:
            writer.add(encode_event(Event(b"", style.word(answerable(error)).body)))
        await writer.flush()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Writer:
    """What waits to be sent."""

    def __init__(self, send: Send, stall_s: float, before_write: Callable[[], None]) -> None:
        self._send, self._stall_s, self._before_write = send, stall_s, before_write
        self._waiting: list[bytes] = []
        self._num_bytes = 0

    def add(self, data: bytes) -> None:
        """Keep for the next flush."""
        self._waiting.append(data)
        self._num_bytes += len(data)

    @property
    def is_full(self) -> bool:
        """Whether to flush before more is added."""
        return self._num_bytes >= MAX_BUFFER_BYTES

    async def flush(self) -> None:
        """One write of all that waits; ReaderStalled if the socket takes it not in time."""
        if not self._waiting:
            return
        body = b"".join(self._waiting)
        self._waiting.clear()
        self._num_bytes = 0
        self._before_write()
        steps: Any = self._send({"type": "http.response.body", "body": body, "more_body": True}).__await__()
        try:
            future = steps.send(None)
        except StopIteration:
            return  # taken at once: the usual case needs no timer
        try:
            async with asyncio.timeout(self._stall_s):
                await _Rest(steps, future)
        except TimeoutError:
            raise ReaderStalled from None


class _FlushBeforeWaiting(Generic[T]):
    """Awaits something; if it is not there at once, awaits `flush` first.

    So no timer decides when to write: whatever is ready goes out together, and nothing waits for more. It works
    on the coroutine protocol: the first `send(None)` either ends with the result or gives the future to wait for.
    """

    __slots__ = ("_awaitable", "_flush")

    def __init__(self, awaitable: Awaitable[T], flush: Callable[[], Awaitable[None]]) -> None:
        self._awaitable, self._flush = awaitable, flush

    def __await__(self) -> Generator[Any, Any, T]:
        steps: Any = self._awaitable.__await__()
        result: T
        try:
            future = steps.send(None)
        except StopIteration as done:
            result = done.value
            return result
        try:
            yield from self._flush().__await__()
        except BaseException as error:
            future = steps.throw(error)  # which ends the coroutine, or it cleans up and waits for this
        result = yield from _rest(steps, future)
        return result


class _Rest:
    """Awaits the rest of a coroutine whose first step gave this future."""

    __slots__ = ("_future", "_steps")

    def __init__(self, steps: Any, future: Any) -> None:
        self._steps, self._future = steps, future

    def __await__(self) -> Generator[Any, Any, Any]:
        return _rest(self._steps, self._future)


def _rest(steps: Any, future: Any) -> Generator[Any, Any, Any]:
    try:
        while True:
            try:
                value = yield future
            except BaseException as error:
                future = steps.throw(error)
            else:
                future = steps.send(value)
    except StopIteration as done:
        return done.value
