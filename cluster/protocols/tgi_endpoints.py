"""The endpoints of Text Generation Inference."""

import msgspec
from starlette.types import Receive, Scope, Send

from cluster.api.completions import Completions
from cluster.api.request_body import decode_body
from cluster.api.serving import Serving
from cluster.auth.access import Access
from cluster.gateway.endpoints import Endpoint
from cluster.gateway.error_style import TGI_STYLE
from cluster.gateway.generating import caller_of
from cluster.gateway.http_exchange import read_json_body, send_json, while_client_stays
from cluster.gateway.sse import send_stream
from cluster.protocols.tgi import Tgi
from cluster.protocols.tgi_schema import TgiAnswer, TgiEvent, TgiInfo, TgiRequest


class _TgiGenerate:
    """One of the generating endpoints; `is_stream` None: as the body says."""

    def __init__(self, serving: Serving, tgi: Tgi, path: str, is_stream: bool | None) -> None:
        self._serving, self._tgi, self._path, self._is_stream = serving, tgi, path, is_stream
        self._decoder = msgspec.json.Decoder(TgiRequest)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await read_json_body(scope, receive, self._serving.config.max_body_bytes)
        body = decode_body(raw, self._decoder)
        is_stream = bool(body.stream) if self._is_stream is None else self._is_stream
        async with while_client_stays(receive):
            call = await self._tgi.prepare(body, caller_of(scope, self._path), is_stream)
            if is_stream:
                events = self._tgi.events(body, call)
                stall_s = self._serving.config.stream_stall_s
                await send_stream(send, events, call.record.headers, stall_s, style=TGI_STYLE, done=b"")
            else:
                answer = msgspec.json.encode(await self._tgi.answer(body, call))
                if self._is_stream is None:  # at `/` its clients expect a list
                    answer = b"[" + answer + b"]"
                await send_json(send, 200, answer, call.record.headers)


def tgi_endpoints(serving: Serving, completions: Completions, version: str) -> list[Endpoint]:
    """All of them."""
    tgi = Tgi(serving, completions, version)

    async def info(scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, msgspec.json.encode(tgi.info(None, caller_of(scope, "/info"))))

    def generating(path: str, summary: str, is_stream: bool | None) -> Endpoint:
        return Endpoint(
            method="POST",
            path=path,
            access=Access.USER,
            summary=summary,
            body=TgiRequest,
            answer={True: None, False: TgiAnswer, None: list[TgiAnswer]}[is_stream],
            chunks=() if is_stream is False else (TgiEvent,),
            errors=TGI_STYLE,
            run=_TgiGenerate(serving, tgi, path, is_stream),
            error_statuses=(404, 408, 413, 415, 422, 424, 429, 504),
        )

    return [
        generating("/generate", "Continue a text (Text Generation Inference)", False),
        generating("/generate_stream", "Continue a text, token by token (Text Generation Inference)", True),
        generating("/", "Continue a text, as Text Generation Inference's clients ask", None),
        Endpoint(
            method="GET",
            path="/info",
            access=Access.USER,
            summary="The served model (Text Generation Inference)",
            answer=TgiInfo,
            errors=TGI_STYLE,
            run=info,
            error_statuses=(404, 422, 429),
        ),
    ]
