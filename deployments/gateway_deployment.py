"""GatewayDeployment: the Serve ingress around `cluster.gateway.app`: HTTP by its own listener or through Serve's proxy,
and the Python handle API. All three enter by the same code path.
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

from cluster.api.handle_api import HandleApi
from cluster.calls.calls import Calls
from cluster.config import Edge, MantaConfig, ModelConfig, require_auth
from cluster.gateway.app import build_gateway
from cluster.gateway.layers import Identify, bearer
from cluster.health.gateway_health import GatewayHealth
from cluster.metrics import declared
from cluster.metrics.gateway_metrics import GatewayMetrics
from cluster.streams.dispatcher import Dispatcher
from cluster.streams.link import ShardListener
from cluster.streams.stream_copies import StreamCopies
from cluster.text.served_model import GenerationDefaults, ServedModel
from deployments.call_sinks import CallSinks
from deployments.gateway_auth import open_auth
from deployments.gateway_links import GatewayLinks
from deployments.health_listener import open_health_listener
from deployments.http_door import HttpDoor
from deployments.json_logs import log_as_json
from deployments.leave import Leave
from deployments.quota_links import QuotaLinks
from deployments.router_actor import configure_routers, join_router
from deployments.router_link import Shards
from deployments.router_store import cluster_secret
from deployments.settled_heap import settle_heap
from deployments.take_leave import drain_gateway
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
        self._dispatcher = Dispatcher(name)
        shards = Shards(self._config.router.shards, join_router, cluster_secret())
        copies = StreamCopies(self._config.gateway.resume_s, shards.count)
        self._metrics = GatewayMetrics(self._dispatcher)
        self._sinks = CallSinks(self._config, name, self._metrics.instruments)
        limits = QuotaLinks(self._config, name, self._metrics.instruments)
        calls = Calls(limits.quotas, [limits.quotas, self._metrics.calls, *self._sinks.sinks])
        listeners: list[ShardListener] = [self._metrics.scrapes, calls.reports, limits]
        self._links = GatewayLinks(self._dispatcher, copies, listeners, shards)
        models = await asyncio.to_thread(_load_models, self._config)
        self._health = GatewayHealth(list(models), self._dispatcher, self._metrics)
        self._links.on_tick.append(self._health.on_tick)
        identify = self._ask_who() if self._config.auth.is_on else None
        board = self._health.board
        self._app = build_gateway(
            models, self._dispatcher, self._config.gateway, identify, copies, calls, self._metrics, board
        )
        self._api = HandleApi(models, self._dispatcher, self._config.gateway, calls)
        gateway = self._config.gateway
        self._door = HttpDoor(self._app, gateway.host, gateway.port) if _edge(self._config) is Edge.DIRECT else None
        self._leave = Leave(self._drain)
        self._health_listener = open_health_listener(board, gateway)
        loop = asyncio.get_running_loop()

        def leave() -> None:
            board.leave()  # even if the event loop turns no more
            loop.call_soon_threadsafe(self._leave.begin)

        on_sigterm(leave)
        settle_heap()

    async def _drain(self) -> None:
        self._health.board.leave()
        await drain_gateway(self._dispatcher, self._door, self._config.gateway.drain_s)

    def _ask_who(self) -> Identify:
        authenticate = open_auth(self._config.auth)
        self._metrics.read_from(declared.AUTH_REFUSALS, lambda: authenticate.refusals)
        self._metrics.read_from(declared.KEY_FETCHES, lambda: authenticate.key_fetches)
        return bearer(authenticate)

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
        """A gateway without its listener or its watchdog is a dead one; one that leaves is to be replaced."""
        if self._leave.has_begun:
            raise RuntimeError("the gateway drains")
        if self._door is not None and self._door.has_ended:
            raise RuntimeError("the HTTP listener has ended")
        if self._links.has_failed:
            raise RuntimeError("the watchdog has ended")

    async def __del__(self) -> None:
        """Serve calls it when the gateway is to stop and its own handles' requests are done, and waits."""
        leave = getattr(self, "_leave", None)
        if leave is not None:
            await leave.wait()
            await self._sinks.close()


def _load_models(config: MantaConfig) -> dict[str, ServedModel]:
    return {model.served_name: _load_model(model) for model in config.models}


def _load_model(model: ModelConfig) -> ServedModel:
    loaded = ServedModel.load(model.served_name, model.location)
    if model.is_chain:  # the tokenizer is the demo model's; its generation defaults, where sequences end, are not
        return msgspec.structs.replace(loaded, defaults=GenerationDefaults())
    return loaded


def _edge(config: MantaConfig) -> Edge:
    """Resolve `auto`: through the proxy where Serve runs one, which then must not be open to strangers."""
    edge = config.gateway.edge
    if edge is Edge.AUTO:
        edge = Edge.PROXY if serve.status().proxies else Edge.DIRECT
    if edge is Edge.PROXY:
        require_auth(config.auth, "http_options.host", _get_global_client().http_config.host)
    return edge
