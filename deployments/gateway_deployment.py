"""GatewayDeployment: the Serve ingress: HTTP by the gateway's own listener or through Serve's proxy, and the Python
handle API. All enter by the same code path (`deployments.gateway`).
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
from ray import serve
from ray.serve.context import _get_global_client
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.config import Edge, MantaConfig, ModelConfig, require_auth
from cluster.text.served_model import GenerationDefaults, ServedModel
from deployments.gateway import Gateway
from deployments.json_logs import log_as_json
from deployments.leave import Leave
from deployments.router_actor import configure_routers, join_router
from deployments.router_link import Shards
from deployments.router_store import cluster_secret
from deployments.settled_heap import settle_heap
from deployments.termination import on_sigterm

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
        log_as_json()
        self._config = msgspec.json.decode(config, type=MantaConfig)
        name = serve.get_replica_context().replica_id.unique_id
        configure_routers(self._config.router)
        models = await asyncio.to_thread(_load_models, self._config)
        shards = Shards(self._config.router.shards, join_router, cluster_secret())
        self._gateway = Gateway(self._config, name, shards, models)
        await self._gateway.open(with_http=_edge(self._config) is Edge.DIRECT)
        self._leave = Leave(self._gateway.leave)
        loop = asyncio.get_running_loop()

        def leave() -> None:
            self._gateway.board.leave()  # even if the event loop turns no more
            loop.call_soon_threadsafe(self._leave.begin)

        on_sigterm(leave)
        settle_heap()

    async def __call__(self, request: Request) -> Response:
        return _Forward(self._gateway.app)

    async def generate(self, prompt: Any = None, **options: Any) -> dict[str, Any]:
        """One completion, whole: see `cluster.api.handle_api.HandleApi.generate`."""
        return await self._gateway.api.generate(prompt, **options)

    async def stream(self, prompt: Any = None, **options: Any) -> AsyncIterator[dict[str, Any]]:
        """One completion in pieces, as they come."""
        async with aclosing(self._gateway.api.stream(prompt, **options)) as pieces:
            async for piece in pieces:
                yield piece

    async def chat(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """One chat answer, whole."""
        return await self._gateway.api.chat(messages, **options)

    async def chat_stream(self, messages: list[dict[str, Any]], **options: Any) -> AsyncIterator[dict[str, Any]]:
        """One chat answer in pieces, as they come."""
        async with aclosing(self._gateway.api.chat_stream(messages, **options)) as pieces:
            async for piece in pieces:
                yield piece

    def check_health(self) -> None:
        """A gateway without its listener or its watchdog is a dead one; one that leaves is to be replaced."""
        if self._leave.has_begun:
            raise RuntimeError("the gateway drains")
        if failure := self._gateway.failure:
            raise RuntimeError(failure)

    async def __del__(self) -> None:
        """Serve calls it when the gateway is to stop and its own handles' requests are done, and waits."""
        leave = getattr(self, "_leave", None)
        if leave is not None:
            await leave.wait()


def _load_models(config: MantaConfig) -> dict[str, ServedModel]:
    return {model.served_name: _load_model(model) for model in config.models}


def _load_model(model: ModelConfig) -> ServedModel:
    loaded = ServedModel.load(model.served_name, model.location)
    if model.is_chain:  # the tokenizer is the demo model's; its generation defaults, where sequences end, are not
        return msgspec.structs.replace(loaded, defaults=GenerationDefaults())
    return loaded


def _edge(config: MantaConfig) -> Edge:
    """Resolve `auto`: through the proxy where Serve runs one.

    A proxy leads to the gateway whatever its edge is, so it must not be open to strangers.
    """
    edge, is_proxied = config.gateway.edge, bool(serve.status().proxies)
    if is_proxied or edge is Edge.PROXY:
        require_auth(config.auth, "http_options.host", _get_global_client().http_config.host)
    if edge is not Edge.AUTO:
        return edge
    return Edge.PROXY if is_proxied else Edge.DIRECT
