"""An HTTP client that keeps a journal and does not give up: what breaks is resumed, or sent again if nothing was read.

Every exchange has a connection of its own. A broken event stream goes on at `GET /v1/streams/{id}` with `Last-Event-ID`
at whatever gateway answers; a request of which nothing has arrived is sent again. A gateway that says that it closes
is a connection that breaks with notice.
"""

import asyncio
import time
from collections.abc import Callable
from urllib.parse import quote, urlsplit

import httptools
import msgspec

from scripts.chaos_run.journal import Chunk, Event, Journal
from scripts.chaos_run.workload import Ask

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.25  #: between attempts to connect

_CLOSING = b'"code":"gateway_closing"'

#: What happens to a received event before the journal sees it: nothing, or a planted bug.
Receive = Callable[[Event], list[Event]]


def as_it_comes(event: Event) -> list[Event]:
    return [event]


class _Broken(Exception):
    """The connection ended before the answer did."""


class _Answer(asyncio.Protocol):
    """Sends one request; gives the events of a stream to `sink`, keeps the body of anything else."""

    def __init__(self, request: bytes, sink: Callable[[Event], None]) -> None:
        self._request, self._sink = request, sink
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._is_stream = False
        self.body = b""
        self.status = 0
        self.is_whole = self.is_closing = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]  # a stream transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._is_stream = value.startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if not self._is_stream:
            self.body += body
            return
        *events, self._rest = (self._rest + body).split(b"\n\n")
        for event in events:
            fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if not line.startswith(b":"))
            if _CLOSING in fields.get(b"data", b""):
                self.is_closing = True
            elif b"data" in fields:
                self._sink(Event(fields.get(b"id", b"").decode(), fields[b"data"]))

    def on_message_complete(self) -> None:
        self.is_whole = True
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class StreamClient:
    """Talks to one base URL, whoever listens there at the time."""

    def __init__(
        self, url: str, model: str, deadline_s: float, receive: Receive = as_it_comes, resumes: bool = True
    ) -> None:
        parts = urlsplit(url)
        self._resumes = resumes
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._model, self._deadline_s, self._receive = model, deadline_s, receive

    async def run(self, ask: Ask) -> Journal:
        """From the request to its end, however often the connection breaks; never raises for what servers do."""
        journal = Journal.begin(ask, time.monotonic())
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._follow(journal)
        except TimeoutError:
            journal.errors.append(f"not over after {self._deadline_s:.0f} s")
        journal.ended_at = time.monotonic()
        return journal

    async def _follow(self, journal: Journal) -> None:
        pause_s = FIRST_PAUSE_S
        while not journal.is_over:
            num_read = sum(len(choice.token_ids) for choice in journal.choices)
            try:
                await self._attempt(journal)
            except (_Broken, OSError):
                if journal.is_over:
                    return
                moved = sum(len(choice.token_ids) for choice in journal.choices) > num_read
                pause_s = FIRST_PAUSE_S if moved else min(2 * pause_s, LONGEST_PAUSE_S)
                await asyncio.sleep(pause_s)

    async def _attempt(self, journal: Journal) -> None:
        """One connection, to the end of the answer or of the connection."""
        has_begun = any(choice.token_ids for choice in journal.choices)
        if has_begun and not (journal.cursor and self._resumes):
            journal.errors.append(f"the connection broke after {len(journal.choices[0].token_ids)} tokens")
            return
        request = self._resumption(journal) if journal.cursor and self._resumes else self._request(journal)

        def sink(event: Event) -> None:
            now = time.monotonic()
            try:
                for received in self._receive(event):
                    journal.read(received, now)
            except (msgspec.DecodeError, IndexError) as error:
                journal.errors.append(f"not an event of this stream ({error}): {event.data[:200]!r}")

        loop = asyncio.get_running_loop()
        transport, answer = await loop.create_connection(lambda: _Answer(request, sink), self._host, self._port)
        try:
            await answer.ended
        finally:
            transport.abort()
        if not answer.status or not answer.is_whole or (answer.status == 503 and _CLOSING in answer.body):
            raise _Broken
        if answer.status != 200:
            journal.errors.append(f"status {answer.status}: {answer.body[:300].decode(errors='replace')}")
        elif answer.body:
            journal.read_chunk(msgspec.json.decode(answer.body, type=Chunk), time.monotonic())
            journal.num_done += 1
        elif answer.is_closing:
            raise _Broken
        elif not journal.is_over:
            journal.errors.append("the stream ended cleanly without [DONE] and without an error event")

    def _request(self, journal: Journal) -> bytes:
        journal.num_sent += 1
        payload = msgspec.json.encode(journal.ask.body(self._model))
        head = f"Content-Type: application/json\r\nContent-Length: {len(payload)}"
        return self._head("POST /v1/completions", journal, head) + payload

    def _resumption(self, journal: Journal) -> bytes:
        journal.num_resumed += 1
        return self._head(f"GET /v1/streams/{quote(journal.stream_id)}", journal, f"Last-Event-ID: {journal.cursor}")

    def _head(self, what: str, journal: Journal, *headers: str) -> bytes:
        accept = "text/event-stream" if journal.ask.stream else "application/json"
        host = f"{self._host}:{self._port}"
        lines = (f"{what} HTTP/1.1", f"Host: {host}", f"Accept: {accept}", "Connection: close", *headers, "", "")
        return "\r\n".join(lines).encode()
