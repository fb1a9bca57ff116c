"""A light HTTP client for load: one streamed completion on a connection of its own, its events timed as they arrive.

It counts events instead of parsing them, so that on a small machine the server is measured and not its client; an
answer counts as whole only if it ended with `[DONE]` and no error event.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import msgspec

_RETRY_AFTER = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)


@dataclass(slots=True)
class Timeline:
    """What one request saw. Times are seconds on one clock; `events_at` holds the arrival of each streamed event."""

    started_at: float
    events_at: list[float] = field(default_factory=list)
    ended_at: float = 0.0
    status: int = 0
    error: str = ""
    retry_after_s: int | None = None  #: of a refusal

    @property
    def ttft_s(self) -> float:
        return self.events_at[0] - self.started_at

    @property
    def gaps_s(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.events_at, self.events_at[1:], strict=False)]


class _Streamed(asyncio.Protocol):
    """Sends one request, counts the `data:` lines of its answer."""

    def __init__(self, head: bytes, timeline: Timeline) -> None:
        self._head, self._timeline = head, timeline
        self._tail = b""
        self._done_seen = False
        self._failed = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        self._transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        data = self._tail + data
        if not self._timeline.status and data.startswith(b"HTTP/1.1 ") and len(data) >= 12:
            self._timeline.status = int(data[9:12])
        whole, newline, self._tail = data.rpartition(b"\n")  # an event is counted once, with the end of its line
        lines = whole + newline
        self._timeline.events_at += [now] * lines.count(b'data: {"')
        self._failed |= b'data: {"error"' in lines
        self._done_seen |= b"data: [DONE]" in lines
        if self._done_seen or (self._timeline.status and self._timeline.status != 200):
            self._finish(data)

    def _finish(self, data: bytes) -> None:
        timeline = self._timeline
        timeline.ended_at = time.perf_counter()
        if timeline.status != 200:
            timeline.error = data[-300:].decode(errors="replace")
            found = _RETRY_AFTER.search(data)
            timeline.retry_after_s = int(found[1]) if found is not None else None
        elif self._failed:
            timeline.error = "the stream held an error event"
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        timeline = self._timeline
        if not timeline.ended_at:
            timeline.ended_at = time.perf_counter()
            timeline.error = f"the connection ended before [DONE]: {exc or 'closed by the server'}"
        if not self.ended.done():
            self.ended.set_result(None)


async def streamed_completion(url: str, body: dict[str, object], headers: Mapping[str, str] | None = None) -> Timeline:
    """POST `body` to `url` (`http://host:port/path`) and follow the stream to its end."""
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    parts = urlsplit(url)
    payload = msgspec.json.encode({**body, "stream": True})
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\nConnection: close\r\n{more}\r\n"
    ).encode() + payload
    timeline = Timeline(time.perf_counter())
    loop = asyncio.get_running_loop()
    try:
        transport, protocol = await loop.create_connection(
            lambda: _Streamed(head, timeline), parts.hostname or "127.0.0.1", parts.port or 80
        )
    except OSError as error:
        timeline.ended_at, timeline.error = time.perf_counter(), str(error)
        return timeline
    try:
        await protocol.ended
    finally:
        transport.abort()
    return timeline
