"""The gateway's endpoints as data: path, method, types; and what each does with an exchange.

`cluster.gateway.app` routes by this table, `cluster.gateway.openapi` documents it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

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
from cluster.api.serving import Serving
from cluster.api.stream_position import HEADER
from cluster.api.token_endpoints import TokenEndpoints
from cluster.auth.access import Access
from cluster.auth.principal import Principal
from cluster.calls.report import CallReport
from cluster.gateway.error_style import OPENAI_STYLE, ErrorStyle
from cluster.gateway.generating import RESUME, Generating, Resuming
from cluster.gateway.http_errors import RequestNotFound
from cluster.gateway.http_exchange import read_json_body, send_json
from cluster.health.board import PATHS, HealthAnswer, HealthBoard
from cluster.metrics.gateway_metrics import GatewayMetrics

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of the API."""

    method: str
    path: str
    access: Access  #: without a default: nothing is open by omission
    summary: str
    run: Asgi
    answer: Any = None  #: type; None: there are only streams, or text
    body: type[msgspec.Struct] | None = None
    chunks: Sequence[type[msgspec.Struct]] = ()  #: of an event stream, where there is one
    headers: Mapping[str, str] = {}  #: of the request, and what they are for
    aliases: Sequence[str] = ()
    text: str = ""  #: media type of an answer that is no JSON
    answer_statuses: Sequence[int] = (200,)  #: with which `answer` comes
    error_statuses: Sequence[int] = ()
    errors: ErrorStyle = OPENAI_STYLE

    @property
    def paths(self) -> tuple[str, ...]:
        """All it is found under."""
        return (self.path, *self.aliases)


def list_endpoints(serving: Serving, version: str, metrics: GatewayMetrics | None) -> list[Endpoint]:
    """The whole API."""
    tokens = TokenEndpoints(serving, version)
    of_chat = Generating(serving, CHAT, Chat(serving), ChatRequest)
    of_completions = Generating(serving, COMPLETIONS, Completions(serving), CompletionRequest)
    of_body, of_generation = (400, 404, 408, 413, 415), (400, 404, 408, 413, 415, 500, 503, 504)
    return [
        Endpoint(
            method="POST",
            path=CHAT,
            access=Access.USER,
            summary="Answer a conversation",
            body=ChatRequest,
            answer=ChatResponse,
            chunks=(ChatChunk,),
            run=of_chat,
            error_statuses=of_generation,
        ),
        Endpoint(
            method="POST",
            path=COMPLETIONS,
            access=Access.USER,
            summary="Continue a text",
            body=CompletionRequest,
            answer=CompletionResponse,
            chunks=(CompletionResponse,),
            run=of_completions,
            error_statuses=of_generation,
        ),
        *_resuming(serving, {CHAT: of_chat, COMPLETIONS: of_completions}),
        Endpoint(
            method="GET",
            path="/v1/requests/{request}",
            access=Access.USER,
            summary="Where the time of a call went, by its id or its answer's X-Request-Id",
            answer=CallReport,
            run=Reporting(serving),
            error_statuses=(404,),
        ),
        Endpoint(
            method="GET",
            path="/v1/models",
            access=Access.USER,
            summary="List the served models",
            answer=ModelList,
            run=getting(tokens.models),
        ),
        Endpoint(
            method="GET",
            path="/v1/models/{model:path}",
            access=Access.USER,
            summary="Describe a served model",
            answer=ModelCard,
            run=getting(tokens.model_card),
            error_statuses=(404,),
        ),
        Endpoint(
            method="POST",
            path="/v1/tokenize",
            access=Access.USER,
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
            access=Access.USER,
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
            access=Access.OPEN,
            summary="Whether this gateway is alive",
            answer=Health,
            run=getting(tokens.health),
        ),
        Endpoint(
            method="GET",
            path="/version",
            access=Access.USER,
            summary="The version of Manta",
            answer=Version,
            run=getting(tokens.version),
        ),
        *_metrics(metrics),
    ]


def health_endpoints(board: HealthBoard | None, tells_why: bool) -> list[Endpoint]:
    """What a probe asks. They are open to all, so strangers are told the status alone: reasons name models."""
    if board is None:
        return []

    def answering(path: str) -> Asgi:
        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            query = parse_qs(scope["query_string"].decode("latin-1"))
            answer = board.answer(path, query.get("model", [""])[0] if tells_why else "")
            if not tells_why:
                answer = HealthAnswer(status=answer.status, why=[])
            await send_json(send, answer.http_status, msgspec.json.encode(answer))

        return run

    summaries = ("The process lives", "Every model answers, or `?model=` does", "Where work waits, something moves")
    return [
        Endpoint(
            method="GET",
            path=path,
            access=Access.OPEN,
            summary=summary,
            answer=HealthAnswer,
            run=answering(path),
            answer_statuses=(200, 503),
        )
        for path, summary in zip(PATHS, summaries, strict=True)
    ]


def _metrics(metrics: GatewayMetrics | None) -> list[Endpoint]:
    if metrics is None:
        return []
    return [
        Endpoint(
            method="GET",
            path="/metrics",
            access=Access.METRICS,
            summary="The metrics of all processes, for Prometheus",
            text="text/plain",
            run=metrics.send_page,
        )
    ]


def _resuming(serving: Serving, endpoints: Mapping[str, Generating]) -> list[Endpoint]:
    if serving.config.resume_s <= 0:
        return []
    return [
        Endpoint(
            method="GET",
            path=RESUME,
            access=Access.USER,
            summary="Go on with an event stream whose connection, or whose gateway, was lost",
            chunks=(ChatChunk, CompletionResponse),
            run=Resuming(serving, endpoints),
            headers={
                HEADER: "The `id` of the last event that has come; without it the stream comes from its beginning"
            },
            error_statuses=(400, 404, 500, 503, 504),
        )
    ]


class Reporting:
    """`GET /v1/requests/{request}`."""

    def __init__(self, serving: Serving) -> None:
        self._calls = serving.calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        report = await self._calls.report(scope["path_params"]["request"], scope["principal"].tenant)
        if report is None:
            raise RequestNotFound("Nothing is known of such a request; it may be too old, or run at another gateway.")
        await send_json(send, 200, msgspec.json.encode(report))


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
