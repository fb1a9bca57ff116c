"""The API for Python code inside the cluster: the same bodies, rules and answers as over HTTP, as dictionaries."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from cluster.api.chat import Chat
from cluster.api.completions import Completions
from cluster.api.request_body import convert_fields
from cluster.api.schema_chat import ChatRequest
from cluster.api.schema_completions import CompletionRequest
from cluster.api.serving import Serving
from cluster.api.stream_events import Event
from cluster.auth.credential import is_tenant
from cluster.auth.principal import Principal
from cluster.calls.calls import Calls
from cluster.calls.record import Caller
from cluster.config import GatewayConfig
from cluster.errors import InvalidRequest
from cluster.generation import Generator
from cluster.text.served_model import ServedModel


class HandleApi:
    """Fields are those of the HTTP endpoints. `model` may be left out where one model is served; `tenant` is the
    caller's own word, since code inside the cluster is trusted. Errors are `cluster.errors.ApiError`."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        generator: Generator,
        config: GatewayConfig,
        calls: Calls | None = None,
    ) -> None:
        self._serving = Serving(models, generator, config, calls=calls)
        self._completions, self._chat = Completions(self._serving), Chat(self._serving)

    async def generate(
        self,
        prompt: str | Sequence[Any] | None = None,
        *,
        prompt_token_ids: Sequence[int] | None = None,
        tenant: str = "default",
        **fields: Any,
    ) -> dict[str, Any]:
        """A completion, as `/v1/completions` answers it."""
        body = self._completion_body(prompt, prompt_token_ids, {**fields, "stream": False})
        call = await self._completions.prepare(body, _caller(tenant))
        return _plain(await self._completions.answer(call))

    async def stream(
        self,
        prompt: str | Sequence[Any] | None = None,
        *,
        prompt_token_ids: Sequence[int] | None = None,
        tenant: str = "default",
        **fields: Any,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a completion, as the events of `/v1/completions` hold them. Closing it frees the work."""
        body = self._completion_body(prompt, prompt_token_ids, {**fields, "stream": True})
        call = await self._completions.prepare(body, _caller(tenant))
        async with aclosing(self._completions.events(call)) as events:
            async for event in events:
                yield _data(event)

    async def chat(
        self, messages: Sequence[Mapping[str, Any]], *, tenant: str = "default", **fields: Any
    ) -> dict[str, Any]:
        """A chat answer, as `/v1/chat/completions` gives it."""
        body = self._chat_body(messages, {**fields, "stream": False})
        call = await self._chat.prepare(body, _caller(tenant))
        return _plain(await self._chat.answer(call))

    async def chat_stream(
        self, messages: Sequence[Mapping[str, Any]], *, tenant: str = "default", **fields: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a chat answer."""
        body = self._chat_body(messages, {**fields, "stream": True})
        call = await self._chat.prepare(body, _caller(tenant))
        async with aclosing(self._chat.events(call)) as events:
            async for event in events:
                yield _data(event)

    def _completion_body(
        self, prompt: str | Sequence[Any] | None, token_ids: Sequence[int] | None, fields: dict[str, Any]
    ) -> CompletionRequest:
        if (prompt is None) == (token_ids is None):
            raise InvalidRequest("Give either `prompt` or `prompt_token_ids`.", "prompt")
        given = token_ids if prompt is None else prompt
        fields = self._with_model({**fields, "prompt": given if isinstance(given, str) else list(given or ())})
        return convert_fields(fields, CompletionRequest)

    def _chat_body(self, messages: Sequence[Mapping[str, Any]], fields: dict[str, Any]) -> ChatRequest:
        fields = self._with_model({**fields, "messages": [dict(message) for message in messages]})
        return convert_fields(fields, ChatRequest)

    def _with_model(self, fields: dict[str, Any]) -> dict[str, Any]:
        if fields.get("model") is None:
            fields["model"] = self._serving.model(None, Principal()).name
        return fields


def _caller(tenant: str) -> Caller:
    if not is_tenant(tenant):
        raise InvalidRequest(f"`tenant` must be 1 to 64 letters, digits, `.`, `_` or `-`, not {tenant!r}.", "tenant")
    return Caller(principal=Principal(tenant=tenant))


def _plain(answer: msgspec.Struct) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(answer)
    return plain


def _data(event: Event) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.json.decode(event.data)
    return data
