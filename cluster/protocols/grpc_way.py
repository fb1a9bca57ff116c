"""How a gRPC call comes in and how it fails: who calls, by when it must be done, status codes, metadata."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc

from cluster.auth.access import Access, require
from cluster.calls.record import Caller
from cluster.errors import ApiError
from cluster.gateway.http_errors import answerable
from cluster.gateway.http_exchange import Header
from cluster.gateway.layers import Identify, error_headers, request_id_of

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
        self._identify, self.tell = identify, tell

    @asynccontextmanager
    async def enter(self, context: Context, way: str) -> AsyncIterator[Caller]:
        """Around a handler: who calls; what the handler raises ends the call with its status."""
        given = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        request_id = request_id_of(given.get("x-request-id", ""))
        add_trailers(context, [("x-request-id", request_id)])
        try:
            yield await self.caller(context, way, request_id)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            answer = answerable(error)
            self.tell(answer)
            add_trailers(context, [("manta-code", answer.code)])
            add_headers(context, error_headers(answer))
            await context.abort(_CODES.get(answer.status, grpc.StatusCode.INTERNAL), answer.message)

    async def caller(self, context: Context, way: str, request_id: str) -> Caller:
        """Who calls now: a credential may have been revoked since the stream was opened."""
        given = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        headers = [(key.encode(), value.encode()) for key, value in given.items()]
        principal = await self._identify({"type": "http", "path": way, "headers": headers})
        require(Access.USER, principal)
        return Caller(
            principal=principal,
            way=way,
            request_id=request_id,
            traceparent=given.get("traceparent", ""),
            arrived_at=time.monotonic(),
            timeout_s=context.time_remaining(),
        )


async def cut_off_unread(messages: AsyncGenerator[Any, None], stall_s: float) -> AsyncGenerator[Any, None]:
    """The messages of a call, which is cancelled when its client takes none for so long."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    async with aclosing(messages):
        async for message in messages:
            timer = loop.call_later(stall_s, task.cancel)
            try:
                yield message
            finally:
                timer.cancel()


def add_trailers(context: Context, more: Metadata) -> None:
    """What goes with the end of the call, beside what was said before."""
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), *more))


def add_headers(context: Context, headers: Sequence[Header]) -> None:
    """What HTTP would say in the head of its answer."""
    add_trailers(context, [(name.decode(), value.decode()) for name, value in headers])
