"""Gateway: a gateway's parts and its doors, put together as the configuration has it. Without Ray."""

import asyncio
from collections.abc import Mapping

from cluster.api.handle_api import HandleApi
from cluster.api.serving import Serving
from cluster.calls.calls import Calls
from cluster.config import MantaConfig
from cluster.gateway.app import build_gateway
from cluster.gateway.layers import Identify, bearer, whoever
from cluster.health.gateway_health import GatewayHealth
from cluster.metrics import declared
from cluster.metrics.gateway_metrics import GatewayMetrics
from cluster.streams.dispatcher import Dispatcher
from cluster.streams.link import ShardListener
from cluster.streams.stream_copies import StreamCopies
from cluster.text.served_model import ServedModel
from deployments.call_sinks import CallSinks
from deployments.gateway_auth import open_auth
from deployments.gateway_links import GatewayLinks
from deployments.grpc_start import GrpcListener, open_grpc
from deployments.health_listener import open_health_listener
from deployments.http_door import HttpDoor
from deployments.json_logs import log_lines
from deployments.quota_links import QuotaLinks
from deployments.router_link import Shards
from deployments.take_leave import drain_gateway

CLOSE_S = 5.0

ACQUAINT_S = 3.0  #: so long a gateway waits for word of its models' replicas; at the first start there are none


class Gateway:
    """Connected to the shards from the start; answers once its doors are open."""

    def __init__(self, config: MantaConfig, name: str, shards: Shards, models: Mapping[str, ServedModel]) -> None:
        self._config, self._models = config, tuple(models)
        self._dispatcher = Dispatcher(name)
        copies = StreamCopies(config.gateway.resume_s, shards.count)
        self._metrics = GatewayMetrics(self._dispatcher)
        self._sinks = CallSinks(config, name, self._metrics.instruments)
        limits = QuotaLinks(config, name, self._metrics.instruments)
        calls = Calls(limits.quotas, [limits.quotas, self._metrics.calls, *self._sinks.sinks])
        self._metrics.read_from(declared.SINK_FAILURES, lambda: calls.sink_failures)
        self._metrics.read_from(declared.LOG_LINES_LOST, lambda: log_lines().lost)
        listeners: list[ShardListener] = [self._metrics.scrapes, calls.reports, limits]
        self._links = GatewayLinks(self._dispatcher, copies, listeners, shards)
        self._health = GatewayHealth(list(models), self._dispatcher, self._metrics)
        self._links.on_tick.append(self._health.on_tick)
        self.board = self._health.board
        identify = self._ask_who() if config.auth.is_on else None
        self._identify = identify or whoever(config.gateway)
        self._serving = Serving(models, self._dispatcher, config.gateway, copies, calls)
        self.app = build_gateway(
            models, self._dispatcher, config.gateway, identify, copies, calls, self._metrics, self.board
        )
        self.api = HandleApi(models, self._dispatcher, config.gateway, calls)
        self._http: HttpDoor | None = None
        self._grpc: GrpcListener | None = None

    def _ask_who(self) -> Identify:
        authenticate = open_auth(self._config.auth)
        self._metrics.read_from(declared.AUTH_REFUSALS, lambda: authenticate.refusals)
        self._metrics.read_from(declared.KEY_FETCHES, lambda: authenticate.key_fetches)
        return bearer(authenticate)

    async def _acquaint(self) -> None:
        """Learn which replicas there are: one gateway among others would else refuse what they answer."""
        loop = asyncio.get_running_loop()
        until = loop.time() + ACQUAINT_S
        while loop.time() < until:
            if all(self._dispatcher.model_info(name) is not None for name in self._models):
                return
            await asyncio.sleep(ACQUAINT_S / 100)

    async def open(self, with_http: bool) -> None:
        """Listen. `with_http`: nobody else takes HTTP connections for it."""
        await self._acquaint()
        gateway = self._config.gateway
        if with_http:
            self._http = HttpDoor(self.app, gateway.host, gateway.port)
        if gateway.grpc_port is not None:
            tell = self._metrics.calls.answered
            self._grpc = await open_grpc(self._serving, self._identify, tell, self.board, self._config.auth.is_on)
        self._health_listener = open_health_listener(self.board, gateway)

    async def drain(self) -> None:
        """Let nobody in, and those who are there end."""
        self._health.leave()
        drain_s = self._config.gateway.drain_s
        leaving = [drain_gateway(self._dispatcher, self._http, drain_s)]
        if self._grpc is not None:
            leaving.append(self._grpc.close(drain_s))
        await asyncio.gather(*leaving)

    async def leave(self) -> None:
        """Drain; then what has been told of calls reaches where it goes, if that takes no longer than `CLOSE_S`."""
        try:
            await self.drain()
        finally:
            async with asyncio.timeout(CLOSE_S):
                await self._sinks.close()

    @property
    def failure(self) -> str:
        """What makes it of no use; empty: nothing."""
        if self._http is not None and self._http.has_ended:
            return "the HTTP listener has ended"
        return "the watchdog has ended" if self._links.has_failed else ""
