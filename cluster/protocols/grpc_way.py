"""How a gRPC call comes in and how it fails: who calls, by when it must be done, status codes, metadata."""

import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from cluster.calls.record import Caller
from cluster.errors import ApiError
from cluster.gateway.http_errors import answerable
from cluster.gateway.layers import Identify, error_headers

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

Context = Any  #: `grpc.aio.ServicerContext`
Metadata = list[tuple[str, str]]


class GrpcWay:
    """`identify` is the one of HTTP, `tell` is told of errors."""

    def __init__(self, identify: Identify, tell: Callable[[ApiError], object]) -> None:
        self._identify, self._tell = identify, tell

    @asynccontextmanager
    async def enter(self, context: Context, way: str) -> AsyncIterator[Caller]:
        """Around a handler: who calls; what the handler raises ends the call with its status."""
        given = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        request_id = given.get("x-request-id", "")
        if _REQUEST_ID.fullmatch(request_id) is None:
            request_id = f"req_{secrets.token_hex(12)}"
        add_trailers(context, [("x-request-id", request_id)])
        try:
            headers = [(key.encode(), value.encode()) for key, value in given.items()]
            yield Caller(
                principal=await self._identify({"type": "http", "path": way, "headers": headers}),
                way=way,
                request_id=request_id,
                traceparent=given.get("traceparent", ""),
                arrived_at=time.monotonic(),
                timeout_s=context.time_remaining(),
            )
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            answer = answerable(error)
            self._tell(answer)
            more = [(name.decode(), value.decode()) for name, value in error_headers(answer)]
            add_trailers(context, [("manta-code", answer.code), *more])
            await context.abort(_CODES.get(answer.status, grpc.StatusCode.INTERNAL), answer.message)


def add_trailers(context: Context, more: Metadata) -> None:
    """What goes with the end of the call, beside what was said before."""
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), *more))
