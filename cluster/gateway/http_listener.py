"""uvicorn as Manta listens with it: what the server itself refuses is answered in our words, within our limits.

uvicorn alone waits for a request's head without end, takes heads of any size, any number of headers, requests without a
host and paths that lead elsewhere than they say, and cannot drop a connection whose client does not read.
"""

import asyncio
import json
import re
import secrets
from typing import Any
from urllib.parse import unquote_to_bytes

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_TIMEOUT_S = 5.0  #: from a request's first byte (or the connection's start) to the end of its headers
MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
ABORT = "manta.abort"  #: the ASGI extension: a function that drops the connection and what waits in it

_DOTS = re.compile(rb"(^|[/\\])\.\.?($|[/\\])")


def listener_settings(app: ASGIApp, **more: Any) -> uvicorn.Config:
    """A configuration for `uvicorn.Server`.

    Without a logging configuration of its own: setting one up closes all handlers of the process, and a Ray Serve
    controller that has been restarted stops every replica whose log it can then not find.
    """
    return uvicorn.Config(
        app,
        log_config=None,
        http=Listener,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        **more,
    )


class Listener(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._head_timer: asyncio.TimerHandle | None = None
        self._num_head_bytes = 0
        self._num_heads = 0  #: that have been read to their end
        self._in_head = True
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._head_begins()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_ends()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        was_in_head, num_heads = self._in_head, self._num_heads
        super().data_received(data)
        if was_in_head and self._num_heads == num_heads and not self._refused:  # nothing of it was a body
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_begins()

    def on_headers_complete(self) -> None:
        self._head_ends()
        self._num_heads += 1
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refuse_head()
        elif len(self.headers) > MAX_HEADERS:
            self._refuse(431, "too_many_headers", f"A request has at most {MAX_HEADERS} headers.")
        elif _DOTS.search(unquote_to_bytes(self.url.partition(b"?")[0])):
            self._refuse(400, "bad_path", "A path has no part `.` or `..`, escaped or not.")
        elif sum(name == b"host" for name, _ in self.headers) != 1 and self.parser.get_http_version() == "1.1":
            self._refuse(400, "bad_host", "A request has exactly one Host header.")
        elif not self._refused:
            self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]  # a function, no dict
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()
        self._in_head = True
        self._num_head_bytes = 0

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "invalid_http", "This is not a valid HTTP request.")

    def _head_begins(self) -> None:
        self._head_ends()
        self._in_head = True
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)

    def _head_ends(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._refuse(408, "head_timeout", f"The request's headers did not arrive within {HEAD_TIMEOUT_S:.0f} s.")

    def _refuse_head(self) -> None:
        self._refuse(431, "head_too_large", f"URL and headers have more than {MAX_HEAD_BYTES} bytes.")

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer in place of the app, and close."""
        self._refused = True
        self._head_ends()
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        head = (
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: req_{secrets.token_hex(12)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.close()
