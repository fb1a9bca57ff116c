"""A Manta app around the `chain` engine: each part a process of its own, joined by the production sockets. No Ray."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import uvicorn
import uvloop

from cluster.calls.calls import Calls
from cluster.config import GatewayConfig, RouterConfig
from cluster.frames import ReplicaInfo
from cluster.gateway.app import build_gateway
from cluster.gateway.http_listener import listener_settings
from cluster.metrics.gateway_metrics import GatewayMetrics
from cluster.streams.dispatcher import Dispatcher
from cluster.streams.stream_copies import StreamCopies
from cluster.text.served_model import ServedModel
from deployments.gateway_links import GatewayLinks
from deployments.replica import Replica
from deployments.router_link import RouterAddress, Shards
from deployments.router_shard import RouterShard
from deployments.settled_heap import settle_heap
from engine.chain_startup import start_chain_engine
from engine.config import ChainConfig, EngineConfig, EngineInfo
from engine.core import EngineCore

HOST, MODEL, SECRET = "127.0.0.1", "null", b"bench"
Ports = dict[str, int]


def free_ports() -> Ports:
    """One for each part."""
    ports = {}
    with_sockets = [(name, socket.socket()) for name in PARTS]
    for name, probe in with_sockets:
        probe.bind((HOST, 0))
        ports[name] = int(probe.getsockname()[1])
    for _, probe in with_sockets:
        probe.close()
    return ports


def null_engine(step_ms: float) -> tuple[EngineCore, EngineInfo]:
    """An engine that takes all requests at once; a step takes so long."""
    config = EngineConfig(block_size=32, max_num_seqs=512, max_batched_tokens=1 << 16, kv_cache_tokens=1 << 21)
    return start_chain_engine(config, ChainConfig(step_s=step_ms / 1000))


def run_part(name: str, ports: Ports, step_ms: float, tokenizer: str) -> None:
    """The life of one process."""
    logging.getLogger("manta").setLevel(logging.ERROR)  # the parts start in any order and try again
    uvloop.run(PARTS[name](ports, step_ms, tokenizer))


async def _router(ports: Ports, step_ms: float, tokenizer: str) -> None:
    shard = RouterShard(RouterConfig(), SECRET)
    settle_heap()
    await shard.start(HOST, ports["router"])
    await asyncio.Event().wait()


async def _replica(ports: Ports, step_ms: float, tokenizer: str) -> None:
    core, info = null_engine(step_ms)
    replica = Replica(core, SECRET, on_dead=lambda error: None)
    me = ReplicaInfo("r0", MODEL, HOST, ports["replica"], [os.getpid()], "bench", info)
    settle_heap()
    await replica.start(me, _shards(ports), 0, lambda: None)
    await asyncio.Event().wait()


async def _gateway(ports: Ports, step_ms: float, tokenizer: str) -> None:
    dispatcher, config = Dispatcher("bench"), GatewayConfig()
    copies = StreamCopies(config.resume_s)
    metrics = GatewayMetrics(dispatcher)
    calls = Calls(sinks=[metrics.calls])
    links = GatewayLinks(dispatcher, copies, [metrics.scrapes, calls.reports], _shards(ports))
    models = {MODEL: ServedModel.load(MODEL, tokenizer)}
    app = build_gateway(models, dispatcher, config, copies=copies, calls=calls, metrics=metrics)
    settle_heap()
    await uvicorn.Server(listener_settings(app, host=HOST, port=ports["gateway"])).serve()
    links.close()


def _shards(ports: Ports) -> Shards:
    return Shards(1, partial(_find, ports), SECRET)


async def _find(ports: Ports, shard: int) -> RouterAddress:
    return RouterAddress(HOST, ports["router"], SECRET)


PARTS: dict[str, Callable[[Ports, float, str], Coroutine[Any, Any, None]]] = {
    "router": _router,
    "replica": _replica,
    "gateway": _gateway,
}
