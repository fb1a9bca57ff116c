"""How an endpoint words its errors, where its protocol has another way than OpenAI's."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
from starlette.types import Receive, Scope, Send

from cluster.errors import ApiError

SCOPE_KEY = "error_style"  #: of an ASGI scope, set by an endpoint before anything can go wrong


class ErrorAnswer(NamedTuple):
    """Status and JSON body."""

    status: int
    body: bytes


ErrorStyle = Callable[[ApiError], ErrorAnswer]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


def openai_style(error: ApiError) -> ErrorAnswer:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return ErrorAnswer(error.status, msgspec.json.encode(error.body()))


def kserve_style(error: ApiError) -> ErrorAnswer:
    """`{"error": message}`."""
    return ErrorAnswer(error.status, msgspec.json.encode({"error": error.message}))


def tgi_style(error: ApiError) -> ErrorAnswer:
    """`{"error": message, "error_type": kind}` with the statuses that TGI's clients know."""
    status, kind = error.status, "generation"
    if status in (400, 404, 413, 415):
        status, kind = (422 if status == 400 else status), "validation"
    elif status in (429, 503):
        status, kind = 429, "overloaded"
    elif status == 500:
        status = 424
    return ErrorAnswer(status, msgspec.json.encode({"error": error.message, "error_type": kind}))


def styled(style: ErrorStyle, run: Asgi) -> Asgi:
    """The endpoint, its errors in this style."""

    async def styled_run(scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY] = style
        await run(scope, receive, send)

    return styled_run
