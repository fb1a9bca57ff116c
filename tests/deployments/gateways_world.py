"""Gateways with HTTP around a world's shards and replicas."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

from cluster.calls.calls import Calls
from cluster.config import MantaConfig, ModelConfig
from cluster.gateway.app import build_gateway
from cluster.health.gateway_health import GatewayHealth
from cluster.metrics.gateway_metrics import GatewayMetrics
from cluster.streams.dispatcher import Dispatcher
from cluster.streams.stream_copies import StreamCopies
from cluster.text.served_model import ServedModel
from deployments.call_sinks import CallSinks
from deployments.gateway_links import GatewayLinks
from deployments.quota_links import QuotaLinks
from tests.deployments.serving_world import ServingWorld, until


@cache
def model() -> ServedModel:
    return ServedModel.load("m", ModelConfig().location)


class Gateway:
    """One more gateway of the world, with HTTP."""

    def __init__(self, name: str, world: ServingWorld, config: MantaConfig | None = None) -> None:
        config = config or MantaConfig()
        self.dispatcher, self.copies = Dispatcher(name), StreamCopies(60.0)
        self.metrics = GatewayMetrics(self.dispatcher)
        self.limits = QuotaLinks(config, name, self.metrics.instruments)
        self.sinks = CallSinks(config, name, self.metrics.instruments)
        self.calls = Calls(self.limits.quotas, [self.limits.quotas, self.metrics.calls, *self.sinks.sinks])
        listeners = [self.metrics.scrapes, self.calls.reports, self.limits]
        self.links = GatewayLinks(self.dispatcher, self.copies, listeners, world.addresses)
        self.health = GatewayHealth(["m"], self.dispatcher, self.metrics)
        self.links.on_tick.append(self.health.on_tick)
        self.app = build_gateway(
            {"m": model()}, self.dispatcher, config.gateway, copies=self.copies,
            calls=self.calls, metrics=self.metrics, board=self.health.board,
        )  # fmt: skip


@asynccontextmanager
async def gateways(world: ServingWorld) -> AsyncIterator[tuple[Gateway, Gateway]]:
    pair = Gateway("a", world), Gateway("b", world)
    try:
        for gateway in pair:
            await until(lambda gateway=gateway: len(gateway.links.connections) == len(world.replicas))
        yield pair
    finally:
        for gateway in pair:
            gateway.health.leave()
            gateway.links.close()
