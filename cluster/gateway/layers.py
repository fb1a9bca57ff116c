"""The layers around the gateway's routes, outermost first as `cluster.gateway.app.build_gateway` lists them."""

import asyncio
import logging
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.auth.credential import is_tenant
from cluster.auth.principal import Principal
from cluster.config import GatewayConfig
from cluster.errors import ApiError, InvalidRequest, StreamTaken, Unauthorized
from cluster.gateway.error_style import OPENAI_STYLE, SCOPE_KEY
from cluster.gateway.http_errors import MethodNotAllowed, UnknownPath, answerable
from cluster.gateway.http_exchange import ClientLeft, Header, header, send_json
from cluster.gateway.http_listener import ABORT
from cluster.gateway.sse import ReaderStalled

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_RETRY_AFTER_S = 1.0  #: of a 503 that does not say otherwise

Layer = Callable[[ASGIApp], ASGIApp]
Identify = Callable[[Scope], Awaitable[Principal]]


class RequestIds:
    """Every answer carries `X-Request-Id`: the client's own when it is short visible ASCII, else a new one.

    Notes in `scope["answer_begun"]` that it is too late for an error status.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = header(scope, b"x-request-id") or ""
        request_id = request_id_of(given)
        scope["request_id"], scope["arrived_at"] = request_id, time.monotonic()
        extra: Header = (b"x-request-id", request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["answer_begun"] = True
                message["headers"] = [*message.get("headers", ()), extra]
            await send(message)

        return await self._app(scope, receive, send_with_id)


class Errors:
    """Whatever goes wrong before an answer has begun becomes an error body (`cluster.gateway.error_style`).

    `tell` is told what.
    """

    def __init__(self, app: ASGIApp, tell: Callable[[ApiError], object]) -> None:
        self._app, self._tell = app, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            return await self._app(scope, receive, send)
        except ClientLeft:
            return None
        except Exception as error:
            if scope.get("answer_begun"):
                if not isinstance(error, ReaderStalled | StreamTaken | OSError):
                    raise
                logger.info("cut off a stream: %s", type(error).__name__)
                return await _drop_connection(scope)
            answer = _from_router(error, scope) if isinstance(error, HTTPException) else answerable(error)
        self._tell(answer)
        worded = scope.get(SCOPE_KEY, OPENAI_STYLE).word(answer)
        return await send_json(send, worded.status, worded.body, error_headers(answer))


def request_id_of(given: str) -> str:
    """The client's own when it is short visible ASCII, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def untold(error: ApiError) -> None:
    """Nobody counts them."""


class Identification:
    """The one place where it is decided who asks: `scope["principal"]`. Nobody passes without, but to an open path.

    What was said of it is not there any more behind this: nobody can believe it again, or write it to a log.
    """

    def __init__(self, app: ASGIApp, identify: Identify, open_paths: Collection[str] = ()) -> None:
        self._app, self._identify, self._open_paths = app, identify, frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            scope["principal"] = await self._identify(scope)
        scope["headers"] = [pair for pair in scope.get("headers", ()) if not _says_who(pair[0])]
        await self._app(scope, receive, send)


def _says_who(name: bytes) -> bool:
    return name == b"authorization" or name.startswith(b"x-tenant")


async def anyone(scope: Scope) -> Principal:
    """Everybody is the default tenant, and may do all."""
    return Principal(is_admin=True)


def whoever(config: GatewayConfig) -> Identify:
    """Where there is no authentication: anyone, or for development whom a header names."""
    return believe(config.tenant_header) if config.tenant_header else anyone


def bearer(authenticate: Callable[[str | None], Awaitable[Principal]]) -> Identify:
    """Who can prove it in the `Authorization` header, of which there must be one."""

    async def identify(scope: Scope) -> Principal:
        said = [value for name, value in scope["headers"] if name == b"authorization"]
        return await authenticate(str(said[0], "latin-1") if len(said) == 1 else None)

    return identify


def believe(tenant_header: str) -> Identify:
    """The tenant is who that header says; the default tenant where it is missing."""
    name = tenant_header.lower().encode()

    async def identify(scope: Scope) -> Principal:
        said = header(scope, name)
        if said is None:
            return Principal(is_admin=True)
        if not is_tenant(said):
            raise InvalidRequest(
                f"`{tenant_header}` must hold 1 to 64 letters, digits, `.`, `_` or `-`.", tenant_header
            )
        return Principal(tenant=said, is_admin=True)

    return identify


def error_headers(error: ApiError) -> list[Header]:
    """`Allow`, `WWW-Authenticate` and `Retry-After` where they belong, and what the error brings itself."""
    if isinstance(error, Unauthorized):
        return [(b"www-authenticate", b'Bearer realm="manta"')]
    if isinstance(error, MethodNotAllowed):
        return [(b"allow", ", ".join(error.allow).encode())]
    retry_after_s = error.retry_after_s
    if retry_after_s is None and error.status == 503:
        retry_after_s = _RETRY_AFTER_S
    retry = [] if retry_after_s is None else [(b"retry-after", b"%d" % max(1, math.ceil(retry_after_s)))]
    return [*retry, *error.headers]


async def _drop_connection(scope: Scope) -> None:
    """Where the server can: merely closing would wait for the client to read what is buffered."""
    abort = scope.get("extensions", {}).get(ABORT)
    if abort is not None:
        abort()
        await asyncio.sleep(0)  # lets the server see that the connection is gone


def _from_router(error: HTTPException, scope: Scope) -> ApiError:
    if error.status_code == 405:
        allow = tuple(sorted((error.headers or {}).get("Allow", "").split(", ")))
        return MethodNotAllowed(f"This path does not take {scope['method'][:16]}; it takes {', '.join(allow)}.", allow)
    return UnknownPath("There is nothing at this path; `/docs` lists the API.")
