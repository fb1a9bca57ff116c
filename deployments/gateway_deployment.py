"""GatewayDeployment: the Serve ingress around `cluster.gateway.app`: HTTP by its own listener or through Serve's proxy,
and the Python handle API. All three enter by the same code path.
"""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
import uvicorn
from ray import serve
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.api.handle_api import HandleApi
from cluster.config import Edge, MantaConfig, ModelConfig
from cluster.dispatcher import Dispatcher
from cluster.frames import FromRouter
from cluster.gateway.app import build_gateway
from cluster.gateway.http_listener import listener_settings
from cluster.stream_copies import StreamCopies
from cluster.text.served_model import GenerationDefaults, ServedModel
from deployments.gateway_links import GatewayLinks
from deployments.router_actor import router_shard
from deployments.router_link import RouterLink
from deployments.router_shard import RouterAddress

logger = logging.getLogger("manta.gateway")


class _Forward(Response):
    """Answers a request that Serve's proxy brought by running an ASGI app on the same scope."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class GatewayDeployment:
    """One gateway. `engines` are the handles of the replicas' deployments: they make them part of the app."""

    async def __init__(self, config: str, *engines: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        self._config = msgspec.json.decode(config, type=MantaConfig)
        name = serve.get_replica_context().replica_id.unique_id
        router = router_shard(self._config.router)
        address: RouterAddress = await router.join.remote()
        dispatcher = Dispatcher(name)
        copies = StreamCopies(self._config.gateway.resume_s, num_shards=1)
        links = GatewayLinks(dispatcher, copies, address.secret)
        self._router = RouterLink(lambda: router.join.remote(), FromRouter, ("gateway", name), links.shard_peer(0))
        models = await asyncio.to_thread(_load_models, self._config)
        self._app = build_gateway(models, dispatcher, self._config.gateway, copies=copies)
        self._api = HandleApi(models, dispatcher, self._config.gateway)
        self._listener: asyncio.Task[None] | None = None
        if _edge(self._config) is Edge.DIRECT:
            self._listen()

    def _listen(self) -> None:
        gateway = self._config.gateway
        listening = _listening_socket(gateway.host, gateway.port)
        settings = listener_settings(self._app, timeout_graceful_shutdown=5)
        self._listener = asyncio.create_task(uvicorn.Server(settings).serve(sockets=[listening]))

    async def __call__(self, request: Request) -> Response:
        return _Forward(self._app)

    async def generate(self, prompt: Any = None, **options: Any) -> dict[str, Any]:
        """One completion, whole: see `cluster.api.handle_api.HandleApi.generate`."""
        return await self._api.generate(prompt, **options)

    async def stream(self, prompt: Any = None, **options: Any) -> AsyncIterator[dict[str, Any]]:
        """One completion in pieces, as they come."""
        async with aclosing(self._api.stream(prompt, **options)) as pieces:
            async for piece in pieces:
                yield piece

    async def chat(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """One chat answer, whole."""
        return await self._api.chat(messages, **options)

    async def chat_stream(self, messages: list[dict[str, Any]], **options: Any) -> AsyncIterator[dict[str, Any]]:
        """One chat answer in pieces, as they come."""
        async with aclosing(self._api.chat_stream(messages, **options)) as pieces:
            async for piece in pieces:
                yield piece

    def check_health(self) -> None:
        """A listener that has ended is a dead gateway."""
        if self._listener is not None and self._listener.done():
            raise RuntimeError("the HTTP listener has ended")


def _load_models(config: MantaConfig) -> dict[str, ServedModel]:
    return {model.served_name: _load_model(model) for model in config.models}


def _load_model(model: ModelConfig) -> ServedModel:
    loaded = ServedModel.load(model.served_name, model.location)
    if model.is_chain:  # the tokenizer is the demo model's; its generation defaults, where sequences end, are not
        return msgspec.structs.replace(loaded, defaults=GenerationDefaults())
    return loaded


def _edge(config: MantaConfig) -> Edge:
    """Resolve `auto`: through the proxy where Serve runs one."""
    if config.gateway.edge is not Edge.AUTO:
        return config.gateway.edge
    return Edge.PROXY if serve.status().proxies else Edge.DIRECT


def _listening_socket(host: str, port: int) -> socket.socket:
    """Shared by the gateways of a host: the kernel deals connections out (SO_REUSEPORT)."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind(address)
    listening.listen(2048)
    listening.setblocking(False)
    return listening
