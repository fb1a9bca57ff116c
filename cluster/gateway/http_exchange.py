"""One HTTP exchange over ASGI: reading the body within limits, answering with JSON, noticing that the client left."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from starlette.types import Receive, Scope, Send

from cluster.gateway.http_errors import BodyTimeout, BodyTooLarge, UnsupportedMediaType

BODY_TIMEOUT_S = 30.0  #: a body must have arrived within so many seconds

Header = tuple[bytes, bytes]


class ClientLeft(Exception):
    """There is nobody to answer any more."""


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


async def read_json_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The whole body; refuses what is no JSON by its headers, and what `read_body` refuses."""
    media_type = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(
            f"The Content-Type is {media_type[:64]!r}; send JSON with `Content-Type: application/json`."
        )
    return await read_body(scope, receive, max_bytes)


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The whole body; refuses one that is compressed, too large or too slow."""
    encoding = (header(scope, b"content-encoding") or "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(f"The Content-Encoding is {encoding[:64]!r}; send the body uncompressed.")
    declared = header(scope, b"content-length") or "0"
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read(receive, max_bytes)
    except TimeoutError:
        raise BodyTimeout(f"The body did not arrive within {BODY_TIMEOUT_S:.0f} s.") from None


async def _read(receive: Receive, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        part = message.get("body", b"")
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {max_bytes} bytes; send less (`gateway.max_body_bytes`).")


async def send_json(
    send: Send, status: int, body: bytes, headers: Iterable[Header] = (), media_type: bytes = b"application/json"
) -> None:
    """One whole answer."""
    fixed = [(b"content-type", media_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


@asynccontextmanager
async def while_client_stays(receive: Receive) -> AsyncIterator[None]:
    """Run the block; when the client leaves meanwhile, cancel it and raise ClientLeft.

    The body must have been read: what `receive` gives next is the disconnect.
    """
    block = asyncio.current_task()
    assert block is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        block.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if left and block.uncancel() == 0:
            raise ClientLeft from None
        raise
    finally:
        watcher.cancel()
