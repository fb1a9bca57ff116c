"""The gateway's endpoints as data: path, method, types; and what each does with an exchange.

`cluster.gateway.app` routes by this table, `cluster.gateway.openapi` documents it.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from cluster.api.chat import Chat
from cluster.api.completions import Completions
from cluster.api.request_body import decode_body
from cluster.api.schema_chat import ChatChunk, ChatRequest, ChatResponse
from cluster.api.schema_completions import CompletionRequest, CompletionResponse
from cluster.api.schema_tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    Health,
    ModelCard,
    ModelList,
    TokenizeRequest,
    TokenizeResponse,
    Version,
)
from cluster.api.serving import Principal, Serving
from cluster.api.token_endpoints import TokenEndpoints
from cluster.gateway.http_exchange import header, read_json_body, send_json, while_client_stays
from cluster.gateway.sse import send_stream, wants_ids

Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of the API."""

    method: str
    path: str
    summary: str
    answer: type[msgspec.Struct]
    run: Asgi
    body: type[msgspec.Struct] | None = None
    chunk: type[msgspec.Struct] | None = None  #: of an event stream, where there is one
    aliases: Sequence[str] = ()
    error_statuses: Sequence[int] = ()


def list_endpoints(serving: Serving, version: str) -> list[Endpoint]:
    """The whole API."""
    chat, completions, tokens = Chat(serving), Completions(serving), TokenEndpoints(serving, version)
    of_body, of_generation = (400, 404, 408, 413, 415), (400, 404, 408, 413, 415, 500, 503, 504)
    return [
        Endpoint(
            method="POST",
            path="/v1/chat/completions",
            summary="Answer a conversation",
            body=ChatRequest,
            answer=ChatResponse,
            chunk=ChatChunk,
            run=generating(serving, chat, ChatRequest),
            error_statuses=of_generation,
        ),
        Endpoint(
            method="POST",
            path="/v1/completions",
            summary="Continue a text",
            body=CompletionRequest,
            answer=CompletionResponse,
            chunk=CompletionResponse,
            run=generating(serving, completions, CompletionRequest),
            error_statuses=of_generation,
        ),
        Endpoint(
            method="GET",
            path="/v1/models",
            summary="List the served models",
            answer=ModelList,
            run=getting(tokens.models),
        ),
        Endpoint(
            method="GET",
            path="/v1/models/{model:path}",
            summary="Describe a served model",
            answer=ModelCard,
            run=getting(tokens.model_card),
            error_statuses=(404,),
        ),
        Endpoint(
            method="POST",
            path="/v1/tokenize",
            aliases=("/tokenize",),
            summary="Turn a text or a conversation into token ids",
            body=TokenizeRequest,
            answer=TokenizeResponse,
            run=posting(serving, TokenizeRequest, tokens.tokenize),
            error_statuses=of_body,
        ),
        Endpoint(
            method="POST",
            path="/v1/detokenize",
            aliases=("/detokenize",),
            summary="Turn token ids into text",
            body=DetokenizeRequest,
            answer=DetokenizeResponse,
            run=posting(serving, DetokenizeRequest, tokens.detokenize),
            error_statuses=of_body,
        ),
        Endpoint(
            method="GET",
            path="/health",
            summary="Whether this gateway is alive",
            answer=Health,
            run=getting(tokens.health),
        ),
        Endpoint(
            method="GET", path="/version", summary="The version of Manta", answer=Version, run=getting(tokens.version)
        ),
    ]


def generating(serving: Serving, endpoint: Any, body_type: type[Any]) -> Asgi:
    """An endpoint that generates, whole or as a stream; the work is freed when the client leaves."""
    decoder = msgspec.json.Decoder(body_type)

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        raw = await read_json_body(scope, receive, serving.config.max_body_bytes)
        body = decode_body(raw, decoder)
        async with while_client_stays(receive):
            call = await endpoint.prepare(body, scope["principal"])
            if body.stream:
                with_ids = wants_ids(header(scope, b"accept"))
                await send_stream(send, endpoint.events(call), serving.config.stream_stall_s, with_ids)
            else:
                await send_json(send, 200, msgspec.json.encode(await endpoint.answer(call)))

    return run


def posting(
    serving: Serving, body_type: type[Any], answer: Callable[[Any, Principal], Awaitable[msgspec.Struct]]
) -> Asgi:
    """An endpoint that takes a body and answers at once."""
    decoder = msgspec.json.Decoder(body_type)

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        raw = await read_json_body(scope, receive, serving.config.max_body_bytes)
        found = await answer(decode_body(raw, decoder), scope["principal"])
        await send_json(send, 200, msgspec.json.encode(found))

    return run


def getting(answer: Callable[[Scope], msgspec.Struct]) -> Asgi:
    """An endpoint without a body."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, msgspec.json.encode(answer(scope)))

    return run
