"""The endpoints of KServe's Open Inference Protocol v2, and of its generate extension."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from cluster.api.completions import Completions
from cluster.api.request_body import decode_body
from cluster.api.serving import Serving
from cluster.api.stream_events import Event
from cluster.auth.access import Access
from cluster.errors import NoReadyReplica
from cluster.gateway.endpoints import Asgi, Endpoint
from cluster.gateway.error_style import KSERVE_STYLE
from cluster.gateway.generating import caller_of
from cluster.gateway.http_errors import UnsupportedMediaType
from cluster.gateway.http_exchange import header, read_body, read_json_body, send_json, while_client_stays
from cluster.gateway.sse import send_stream
from cluster.protocols.kserve import VERSION, Asked, OpenInference
from cluster.protocols.kserve_schema import (
    GenerateAnswer,
    GenerateBody,
    InferRequest,
    InferResponse,
    ModelMetadata,
    ServerMetadata,
)
from cluster.protocols.kserve_tensors import read_request, write_response

_JSON_LENGTH = b"inference-header-content-length"
_BINARY = b"application/octet-stream"
_ERRORS = (400, 404, 408, 413, 415, 500, 503, 504)
#: A name may hold slashes: paths that go on behind it must come before those that end with it.
_V2 = "/v2/models/{model:path}"
_VERSIONED = _V2 + "/versions/{version}"


class _Kserve:
    """What the endpoints of Open Inference do."""

    def __init__(self, serving: Serving, inference: OpenInference) -> None:
        self._serving, self._inference = serving, inference
        self._decoder = msgspec.json.Decoder(GenerateBody)

    async def server(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, msgspec.json.encode(self._inference.server()))

    async def metadata(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._inference.model(scope["path_params"]["model"], scope["principal"])
        await send_json(send, 200, msgspec.json.encode(found))

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Empty bodies, as the protocol has it."""
        name = scope["path_params"].get("model")
        names = [name] if name is not None else [model.name for model in self._serving.models_of(scope["principal"])]
        if not all(self._inference.is_ready(name, scope["principal"]) for name in names):
            raise NoReadyReplica("No replica is ready.", "model", 1.0)
        await send_json(send, 200, b"")

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, b"")

    async def infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        _check_media_type(scope)
        raw = await read_body(scope, receive, self._serving.config.max_body_bytes)
        length = header(scope, _JSON_LENGTH) or ""
        request = read_request(raw, int(length) if length.isdecimal() and len(length) < 10 else None)
        async with while_client_stays(receive):
            asked = await self._inference.prepare(scope["path_params"]["model"], request, caller_of(scope, "/v2/infer"))
            response = await self._inference.infer(asked)
            body, json_length = write_response(response, _as_bytes(request, response))
            headers = [*asked.call.record.headers]
            if json_length is not None:
                headers.append((_JSON_LENGTH, b"%d" % json_length))
            await send_json(send, 200, body, headers, _BINARY if json_length is not None else b"application/json")

    async def generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._generate_body(scope, receive)
        async with while_client_stays(receive):
            asked = await self._ask(scope, body, "generate")
            answer = _as_answer(await self._inference.infer(asked))
            await send_json(send, 200, msgspec.json.encode(answer), asked.call.record.headers)

    async def generate_stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._generate_body(scope, receive)
        async with while_client_stays(receive):
            asked = await self._ask(scope, body, "generate_stream")
            headers, stall_s = asked.call.record.headers, self._serving.config.stream_stall_s
            await send_stream(send, self._events(asked), headers, stall_s, style=KSERVE_STYLE, done=b"")

    async def _generate_body(self, scope: Scope, receive: Receive) -> GenerateBody:
        raw = await read_json_body(scope, receive, self._serving.config.max_body_bytes)
        return decode_body(raw, self._decoder)

    async def _ask(self, scope: Scope, body: GenerateBody, way: str) -> Asked:
        caller = caller_of(scope, f"/v2/{way}")
        return await self._inference.prepare_text(scope["path_params"]["model"], body, caller)

    async def _events(self, asked: Asked) -> AsyncGenerator[Event, None]:
        async with aclosing(self._inference.stream(asked)) as responses:
            async for response, _ in responses:
                yield Event(b"", msgspec.json.encode(_as_answer(response)))


def _check_media_type(scope: Scope) -> None:
    """JSON, bytes, or unsaid: what a foreign web page may send without being asked for leave is none of these."""
    given = (header(scope, b"content-type") or "application/json").partition(";")[0].strip().lower()
    if given not in ("application/json", "application/octet-stream"):
        raise UnsupportedMediaType(f"The Content-Type is {given[:64]!r}; send application/json or octet-stream.")


def _as_bytes(request: InferRequest, response: InferResponse) -> list[str]:
    """The outputs that are to follow the JSON as bytes."""
    if not request.outputs:
        return [output.name for output in response.outputs] if request.parameters.get("binary_data_output") else []
    return [output.name for output in request.outputs if output.parameters.get("binary_data")]


def _as_answer(response: InferResponse) -> GenerateAnswer:
    outputs = {output.name: (output.data or [""])[0] for output in response.outputs}
    return GenerateAnswer(
        model_name=response.model_name,
        model_version=VERSION,
        id=response.id,
        text_output=outputs["text_output"],
        finish_reason=outputs["finish_reason"],
    )


def kserve_endpoints(serving: Serving, completions: Completions, version: str) -> list[Endpoint]:
    """All of them."""
    kserve = _Kserve(serving, OpenInference(serving, completions, version))

    def getting(path: str, summary: str, run: Asgi, access: Access, answer: Any = None, *aliases: str) -> Endpoint:
        return Endpoint(
            method="GET", path=path, access=access, summary=f"{summary} (Open Inference Protocol)", answer=answer,
            aliases=aliases, run=run, errors=KSERVE_STYLE, error_statuses=(404, 503),
        )  # fmt: skip

    def posting(way: str, summary: str, run: Asgi, body: Any, answer: Any, chunks: tuple[Any, ...] = ()) -> Endpoint:
        return Endpoint(
            method="POST", path=f"{_VERSIONED}/{way}", aliases=(f"{_V2}/{way}",), access=Access.USER,
            summary=f"{summary} (Open Inference Protocol)", body=body, answer=answer, chunks=chunks, run=run,
            errors=KSERVE_STYLE, error_statuses=_ERRORS,
        )  # fmt: skip

    return [
        getting("/v2", "What this server is", kserve.server, Access.USER, ServerMetadata),
        getting("/v2/health/live", "Whether this gateway is alive", kserve.live, Access.OPEN),
        getting("/v2/health/ready", "Whether all models have a replica", kserve.ready, Access.USER),
        posting("infer", "Continue texts", kserve.infer, InferRequest, InferResponse),
        posting("generate", "Continue a text", kserve.generate, GenerateBody, GenerateAnswer),
        posting(
            "generate_stream", "Continue a text, piece by piece", kserve.generate_stream, GenerateBody, None,
            (GenerateAnswer,),
        ),
        getting(f"{_VERSIONED}/ready", "Whether it has a replica", kserve.ready, Access.USER, None, f"{_V2}/ready"),
        getting(_VERSIONED, "What a model takes and gives", kserve.metadata, Access.USER, ModelMetadata, _V2),
    ]  # fmt: skip
