"""The endpoints that generate: answers whole or as streams, streams that outlive their connection and their gateway.

A stream whose client asked for ids is copied to a router shard while it runs (`cluster.streams.stream_copies`), and any
gateway goes on with it from there. A stream belongs to one connection at a time: the last that asked for it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec
from starlette.types import Receive, Scope, Send

from cluster.api.prepared_call import CallOrigin
from cluster.api.request_body import decode_body
from cluster.api.resumption import KeptCall, Past, decode_call, encode_kept, recorded
from cluster.api.serving import Serving
from cluster.api.stream_events import Event
from cluster.api.stream_position import HEADER, Position, check_event_id
from cluster.calls.record import Caller
from cluster.errors import StreamNotFound, StreamTaken
from cluster.gateway.http_exchange import header, read_json_body, send_json, while_client_stays
from cluster.gateway.sse import nothing, send_stream, wants_ids
from cluster.router.journal_store import MAX_STREAM_BYTES
from cluster.streams.stream_copies import Copy

RESUME = "/v1/streams/{stream}"


class GeneratingEndpoint(Protocol):
    """`cluster.api.chat.Chat` and `cluster.api.completions.Completions`."""

    async def prepare(self, body: Any, caller: Caller) -> Any: ...

    def restore(self, body: Any, origin: CallOrigin, caller: Caller) -> Any: ...

    async def answer(self, call: Any) -> msgspec.Struct: ...

    def events(self, call: Any, with_ids: bool = False, past: Past | None = None) -> AsyncGenerator[Event, None]: ...


def caller_of(scope: Scope, way: str) -> Caller:
    """Who has sent this HTTP request."""
    return Caller(
        principal=scope["principal"],
        way=way,
        request_id=scope["request_id"],
        traceparent=header(scope, b"traceparent") or "",
        arrived_at=scope["arrived_at"],
    )


class Generating:
    """One endpoint on the wire; the work is freed when the client leaves."""

    def __init__(self, serving: Serving, path: str, endpoint: GeneratingEndpoint, body_type: type[Any]) -> None:
        self._serving, self._path, self._endpoint = serving, path, endpoint
        self._decoder = msgspec.json.Decoder(body_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A new request."""
        raw = await read_json_body(scope, receive, self._serving.config.max_body_bytes)
        body, caller = decode_body(raw, self._decoder), caller_of(scope, self._path)
        async with while_client_stays(receive):
            call = await self._endpoint.prepare(body, caller)
            if not body.stream:
                answer = await self._endpoint.answer(call)
                await send_json(send, 200, msgspec.json.encode(answer), call.record.headers)
            elif self._is_to_be_kept(scope, raw):
                kept = encode_kept(KeptCall(self._path, raw, call.origin))
                tenant, model = caller.principal.tenant, call.context.model
                await self._send(send, call, self._serving.copies.begin(call.id, tenant, model, kept))
            else:
                await self._send_events(send, call, self._endpoint.events(call))

    async def resume(self, send: Send, kept: KeptCall, asked: "Resume") -> None:
        """Go on with a stream of this endpoint."""
        call = self._endpoint.restore(decode_body(kept.body, self._decoder), kept.origin, asked.caller)
        most = [choice.request.sampling.max_tokens for choice in call.choices]
        position = Position.read(asked.last_event_id, call.id, most)
        tenant, model = asked.caller.principal.tenant, call.context.model
        copy = self._serving.copies.begin(call.id, tenant, model, encode_kept(kept), asked.epoch, asked.journal)
        await self._send(send, call, copy, Past(call, asked.journal, position, asked.epoch))

    def _is_to_be_kept(self, scope: Scope, raw: bytes) -> bool:
        return (
            wants_ids(header(scope, b"accept")) and self._serving.config.resume_s > 0 and len(raw) <= MAX_STREAM_BYTES
        )

    async def _send(self, send: Send, call: Any, copy: Copy, past: Past | None = None) -> None:
        async with _while_held(copy):
            events = self._endpoint.events(recorded(call, copy.add), True, past)
            await self._send_events(send, call, events, self._serving.copies.flush)

    async def _send_events(
        self, send: Send, call: Any, events: AsyncGenerator[Event, None], before_write: Callable[[], None] = nothing
    ) -> None:
        await send_stream(send, events, call.record.headers, self._serving.config.stream_stall_s, before_write)


class Resume(msgspec.Struct, frozen=True):
    """Who wants which stream from where on, and what was kept of it."""

    caller: Caller
    last_event_id: str | None
    epoch: int
    journal: list[bytes]


class Resuming:
    """`GET /v1/streams/{stream}`."""

    def __init__(self, serving: Serving, endpoints: Mapping[str, Generating]) -> None:
        self._serving, self._endpoints = serving, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream, caller = scope["path_params"]["stream"], caller_of(scope, RESUME)
        last_event_id = header(scope, HEADER.lower().encode())
        if last_event_id is not None:
            check_event_id(last_event_id, stream)
        async with while_client_stays(receive):
            models = [model.name for model in self._serving.models_of(caller.principal)]
            stored = await self._serving.copies.fetch(stream, caller.principal.tenant, models)
            if stored is None:
                raise StreamNotFound("There is no such stream to resume: its time may be over. Send the request again.")
            kept = decode_call(stored.call)
            asked = Resume(caller, last_event_id, stored.epoch, stored.journal)
            await self._endpoints[kept.path].resume(send, kept, asked)


@asynccontextmanager
async def _while_held(copy: Copy) -> AsyncIterator[None]:
    """Run the block; when another connection resumes the stream meanwhile, cancel it and raise StreamTaken."""
    block = asyncio.current_task()
    assert block is not None
    copy.on_taken = block.cancel
    try:
        yield
    except asyncio.CancelledError:
        if copy.is_taken and block.uncancel() == 0:
            raise StreamTaken("The stream has been resumed by another connection.") from None
        raise
    finally:
        copy.on_taken = None
        copy.end()
