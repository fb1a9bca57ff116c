"""ResumingStream: an event stream as its client reads it, whole even if connections break and gateways die meanwhile.

    for event in ResumingStream("http://127.0.0.1:8000", "/v1/chat/completions", {"model": "demo", "messages": [...]}):
        ...

`async for` does the same. Needs httpx and nothing else of Manta. Each event comes once, in order, as the JSON it holds.
A broken stream is gone on with at `GET /v1/streams/{stream}`. As long as not one event has come there is nothing to go
on with, so the request is sent again: nothing is told twice, but the server may have begun the work in vain.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any, NoReturn

import httpx

CONNECT_TIMEOUT_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
KEY_VARIABLE = "MANTA_API_KEY"
_GATEWAY_CLOSING = "gateway_closing"  #: `cluster.errors.GatewayClosing`


def bearer(api_key: str | None = None) -> dict[str, str]:
    """The header that says who asks: by this key or token, or that of the environment; nothing where there is none."""
    key = api_key or os.environ.get(KEY_VARIABLE, "")
    return {"Authorization": f"Bearer {key}"} if key else {}


class StreamFailed(Exception):
    """The server refused or broke off the stream, and said why: `status` of the answer, and the error's `body`."""

    def __init__(self, message: str, status: int, body: Any = None) -> None:
        super().__init__(message, status, body)
        self.message, self.status, self.body = message, status, body

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"


class StreamLost(Exception):
    """The connection broke, and the stream could not be gone on with."""


class ResumingStream:
    """One request. Iterate over it once.

    Without an `Authorization` in `headers` the key in the environment's `MANTA_API_KEY` is sent, if there is one.
    `resume_s`: after so long without a way to go on the stream is lost (a server keeps it for `gateway.resume_s`).
    `silence_s`: a connection that says nothing for so long counts as broken. `last_event_id`: go on from there with a
    stream that was begun elsewhere.
    """

    def __init__(
        self,
        base_url: str,
        path: str,
        body: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        resume_s: float = 60.0,
        silence_s: float = 600.0,
        last_event_id: str = "",
    ) -> None:
        said = {name.lower(): value for name, value in {**bearer(), **(headers or {})}.items()}
        self._reading = _Reading(path, body, said, resume_s)
        self._reading.last_event_id = last_event_id
        timeout = httpx.Timeout(silence_s, connect=CONNECT_TIMEOUT_S)
        verify = base_url.startswith("https:")  # else loading the certificates would be in vain, and slow
        self._settings: dict[str, Any] = {"base_url": base_url, "timeout": timeout, "verify": verify}

    @property
    def last_event_id(self) -> str:
        """Of the last event handed out; empty before the first."""
        return self._reading.last_event_id

    @property
    def num_resumed(self) -> int:
        """How often the stream was broken and gone on with."""
        return self._reading.num_resumed

    def __iter__(self) -> Generator[Any, None, None]:
        reading = self._reading
        with httpx.Client(**self._settings) as http:
            while not reading.is_done:
                try:
                    with http.stream(**reading.request()) as response:
                        if response.status_code == 200:
                            for data in response.iter_bytes():
                                yield from reading.read(data)
                        else:
                            reading.refused(response.status_code, response.read())
                except httpx.TransportError as error:
                    reading.broken = error
                if not reading.is_done:
                    time.sleep(reading.pause(time.monotonic()))

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        reading = self._reading
        async with httpx.AsyncClient(**self._settings) as http:
            while not reading.is_done:
                try:
                    async with http.stream(**reading.request()) as response:
                        if response.status_code == 200:
                            async for data in response.aiter_bytes():
                                for event in reading.read(data):
                                    yield event
                        else:
                            reading.refused(response.status_code, await response.aread())
                except httpx.TransportError as error:
                    reading.broken = error
                if not reading.is_done:
                    await asyncio.sleep(reading.pause(time.monotonic()))


class _Reading:
    """How far the stream has been read, and what to ask for next. Knows no socket and no clock."""

    def __init__(self, path: str, body: Mapping[str, Any], headers: dict[str, str], resume_s: float) -> None:
        self._path, self._body, self._resume_s = path, json.dumps({**body, "stream": True}).encode(), resume_s
        self._headers = {**headers, "accept": "text/event-stream"}
        self._buffer = b""
        self._has_read = self._has_connected = False  #: an event, a server
        self._lost_at: float | None = None  #: since then nothing has come
        self._pause_s = FIRST_PAUSE_S
        self._last_refusal: StreamFailed | None = None
        self.broken: httpx.TransportError | None = None
        self.last_event_id = ""
        self.num_resumed = 0
        self.is_done = False

    def request(self) -> dict[str, Any]:
        """The next exchange."""
        self._buffer = b""  # half an event was not handed out, and comes again
        self.broken = self._last_refusal = None
        if not self.last_event_id:
            headers = {**self._headers, "content-type": "application/json"}
            return {"method": "POST", "url": self._path, "headers": headers, "content": self._body}
        self.num_resumed += 1
        stream = self.last_event_id.rpartition(":")[0]
        headers = {**self._headers, "last-event-id": self.last_event_id}
        return {"method": "GET", "url": f"/v1/streams/{stream}", "headers": headers}

    def read(self, data: bytes) -> Generator[Any, None, None]:
        """The events that `data` completes."""
        *blocks, self._buffer = (self._buffer + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for block in blocks:
            lines = (line.partition(b":") for line in block.split(b"\n"))
            fields = {name: value.removeprefix(b" ") for name, _, value in lines if name}
            if b"data" in fields and not self.is_done:
                yield from self._take(fields.get(b"id", b"").decode(errors="replace"), fields[b"data"])

    def _take(self, event_id: str, data: bytes) -> Generator[Any, None, None]:
        if data == b"[DONE]":
            self.is_done = True
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise StreamLost(f"the server sent what is no event: {data[:200]!r}") from None
        if isinstance(event, dict) and "error" in event:
            error = event["error"]
            if isinstance(error, dict) and error.get("code") == _GATEWAY_CLOSING and self.last_event_id:
                return  # a break with notice: another gateway goes on
            raise _failure(500, event)
        self._has_read, self._lost_at, self._pause_s = True, None, FIRST_PAUSE_S
        self.last_event_id = event_id or self.last_event_id
        yield event

    def refused(self, status: int, body: bytes) -> None:
        """An answer other than a stream. While going on, 503 may pass; anything else is the end."""
        try:
            said = json.loads(body)
        except (ValueError, RecursionError):
            said = {"error": {"message": body[:200].decode(errors="replace").strip()}}
        self._last_refusal = _failure(status, said)
        if status != 503 or not self.last_event_id:
            raise self._last_refusal

    def pause(self, now: float) -> float:
        """The exchange is over and the stream is not: how long to wait; raises when it cannot or shall not go on."""
        if self._lost_at is None:
            self._lost_at = now
        if not isinstance(self.broken, httpx.ConnectError | httpx.ConnectTimeout):
            self._has_connected = True
        is_resumable = bool(self.last_event_id) or not self._has_read
        if not self._has_connected or not is_resumable or now - self._lost_at >= self._resume_s:
            self._give_up()
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s

    def _give_up(self) -> NoReturn:
        if self._last_refusal is not None:
            raise self._last_refusal
        if self.broken is None:
            raise StreamLost("the stream ended before the answer did")
        raise StreamLost(f"the connection was lost: {self.broken or type(self.broken).__name__}") from self.broken


def _failure(status: int, said: Any) -> StreamFailed:
    error = said.get("error") if isinstance(said, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return StreamFailed(str(message or said), status, said)
