"""A Manta app around a null engine, each part in a process of its own and joined by the production sockets. No Ray."""

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import uvicorn
import uvloop

from cluster.config import GatewayConfig, RouterConfig
from cluster.frames import FromRouter, ReplicaInfo
from cluster.gateway.app import build_gateway
from cluster.gateway.http_listener import listener_settings
from cluster.streams.dispatcher import Dispatcher
from cluster.streams.stream_copies import StreamCopies
from cluster.text.served_model import ServedModel
from deployments.gateway_links import GatewayLinks
from deployments.replica_links import ReplicaLinks
from deployments.replica_server import ReplicaServer
from deployments.router_link import RouterAddress, RouterLink
from deployments.router_shard import RouterShard
from engine.chain_executor import ChainExecutor
from engine.config import EngineConfig, EngineInfo
from engine.core import EngineCore
from engine.engine_loop import EngineLoop
from engine.scheduler import Scheduler

HOST, MODEL, SECRET = "127.0.0.1", "null", b"bench"
BLOCK_SIZE, NUM_BLOCKS, MAX_NUM_SEQS = 32, 1 << 16, 512
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


def null_engine(step_ms: float, vocab_size: int) -> tuple[EngineCore, EngineInfo]:
    """An engine whose step takes so long and computes nothing but a hash chain."""
    config = EngineConfig(block_size=BLOCK_SIZE, max_num_seqs=MAX_NUM_SEQS, max_batched_tokens=1 << 16)
    info = EngineInfo(
        model_path="null", architecture="Null", weights_revision="0", dtype="none", device="cpu",
        vocab_size=vocab_size, max_model_len=4096, block_size=BLOCK_SIZE, num_blocks=NUM_BLOCKS,
        max_num_seqs=MAX_NUM_SEQS,
    )  # fmt: skip
    return EngineCore(Scheduler(config, info), ChainExecutor(vocab_size, NUM_BLOCKS, BLOCK_SIZE, step_ms / 1000)), info


def run_part(name: str, ports: Ports, step_ms: float, tokenizer: str) -> None:
    """The life of one process."""
    logging.getLogger("manta").setLevel(logging.ERROR)  # the parts start in any order and try again
    uvloop.run(PARTS[name](ports, step_ms, tokenizer))


async def _router(ports: Ports, step_ms: float, tokenizer: str) -> None:
    shard = RouterShard(RouterConfig(), SECRET)
    await shard.start(HOST, ports["router"])
    await asyncio.Event().wait()


async def _replica(ports: Ports, step_ms: float, tokenizer: str) -> None:
    core, info = null_engine(step_ms, ServedModel.load(MODEL, tokenizer).tokenizer.vocab_size)
    loop = asyncio.get_running_loop()
    engine = EngineLoop(
        core,
        on_step=lambda chunks, load: loop.call_soon_threadsafe(server.on_step, chunks, load),
        on_dead=lambda error: None,
    )
    server = ReplicaServer(engine, SECRET)
    await server.listen(HOST, ports["replica"])
    links = ReplicaLinks("r0", server, [lambda: _address(ports)], 0, lambda: None)
    engine.start()
    server.announce(ReplicaInfo("r0", MODEL, HOST, ports["replica"], [0], "bench", info), core.scheduler.load())
    await asyncio.Event().wait()
    links.close()


async def _gateway(ports: Ports, step_ms: float, tokenizer: str) -> None:
    dispatcher = Dispatcher("bench")
    config = GatewayConfig()
    copies = StreamCopies(config.resume_s)
    links = GatewayLinks(dispatcher, copies, SECRET)
    link = RouterLink(lambda: _address(ports), FromRouter, ("gateway", "bench"), links.shard_peer(0))
    app = build_gateway({MODEL: ServedModel.load(MODEL, tokenizer)}, dispatcher, config, copies=copies)
    settings = listener_settings(app, host=HOST, port=ports["gateway"])
    await uvicorn.Server(settings).serve()
    link.close()


async def _address(ports: Ports) -> RouterAddress:
    return RouterAddress(HOST, ports["router"], SECRET)


PARTS: dict[str, Callable[[Ports, float, str], Coroutine[Any, Any, None]]] = {
    "router": _router,
    "replica": _replica,
    "gateway": _gateway,
}
