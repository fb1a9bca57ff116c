"""The serving layer's own cost: everything but the model, whose place a null engine takes.

Gateway (HTTP, tokenizer, detokenizer), router shard and one replica run in processes of their own, as in production,
joined by the same sockets; the engine emits tokens at once. So each time seen by the client is the layer's.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import socket
import time
from multiprocessing.process import BaseProcess
from typing import Any

import httpx
import psutil
import uvicorn
import uvloop
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cluster.config import GatewayConfig, ModelConfig, RouterConfig
from cluster.dispatcher import Dispatcher
from cluster.frames import FromRouter, ReplicaInfo
from cluster.gateway import build_gateway
from cluster.served_model import ServedModel
from deployments.bench_command import summarise
from deployments.gateway_links import GatewayLinks
from deployments.http_load import Timeline, streamed_completion
from deployments.replica_server import ReplicaServer
from deployments.router_link import RouterLink
from deployments.router_shard import RouterAddress, RouterShard
from engine.chain_executor import ChainExecutor
from engine.config import EngineConfig, EngineInfo
from engine.core import EngineCore
from engine.engine_loop import EngineLoop
from engine.scheduler import Scheduler

HOST, MODEL, SECRET = "127.0.0.1", "null", b"bench"
BLOCK_SIZE, NUM_BLOCKS, MAX_NUM_SEQS = 32, 1 << 16, 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 32, 256])
    parser.add_argument("--requests", type=int, default=512, help="per concurrency (32 times it, where that is less)")
    parser.add_argument("--input-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--step-ms", type=float, default=0.0, help="let each engine step take so long")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    context = multiprocessing.get_context("spawn")
    ports = {name: _free_port() for name in ("router", "replica", "gateway")}
    parts = {
        "router": context.Process(target=_run, args=(_router, ports, args.step_ms), daemon=True),
        "replica": context.Process(target=_run, args=(_replica, ports, args.step_ms), daemon=True),
        "gateway": context.Process(target=_run, args=(_gateway, ports, args.step_ms), daemon=True),
    }
    for process in parts.values():
        process.start()
    try:
        url = f"http://{HOST}:{ports['gateway']}"
        _wait_ready(url)
        asyncio.run(_offer(url, 64, 16, args))  # warm up
        rows = [_measure(url, concurrency, parts, args) for concurrency in args.concurrency]
    finally:
        for process in parts.values():
            process.terminate()
            process.join(5)
    if args.json:
        print(json.dumps(rows))
    else:
        _show(rows)
    return 0


def _measure(url: str, concurrency: int, parts: dict[str, BaseProcess], args: argparse.Namespace) -> dict[str, Any]:
    num_requests = min(args.requests, 32 * concurrency)
    before = _cpu_seconds(parts)
    timelines = asyncio.run(_offer(url, num_requests, concurrency, args))
    used = {name: after - before[name] for name, after in _cpu_seconds(parts).items()}
    num_tokens = num_requests * args.output_tokens
    report = summarise(timelines, num_tokens)
    cpu = {name: round(1e6 * seconds / num_tokens, 2) for name, seconds in used.items()}
    per_request = round(1e6 * sum(used.values()) / num_requests)
    return {"concurrency": concurrency, **report, "cpu_us_per_token": cpu, "cpu_us_per_request": per_request}


async def _offer(url: str, num_requests: int, concurrency: int, args: argparse.Namespace) -> list[Timeline]:
    gate = asyncio.Semaphore(concurrency)

    async def one(number: int) -> Timeline:
        prompt = [(7 * number + i) % 1000 + 300 for i in range(args.input_tokens)]
        body = {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": args.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        async with gate:
            return await streamed_completion(f"{url}/v1/completions", body)

    return list(await asyncio.gather(*(one(number) for number in range(num_requests))))


def _cpu_seconds(parts: dict[str, BaseProcess]) -> dict[str, float]:
    times = {name: psutil.Process(process.pid).cpu_times() for name, process in parts.items()}
    return {name: used.user + used.system for name, used in times.items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_ready(url: str) -> None:
    body = {"model": MODEL, "prompt": [300], "max_tokens": 1}
    for _ in track(range(300), "starting", console=Console(stderr=True), transient=True):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.post(f"{url}/v1/completions", json=body, timeout=2.0).status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit("the gateway did not become ready within 30 s")


def _run(part: Any, ports: dict[str, int], step_ms: float) -> None:
    uvloop.run(part(ports, step_ms))


async def _find(ports: dict[str, int]) -> RouterAddress:
    return RouterAddress(HOST, ports["router"], SECRET)


async def _router(ports: dict[str, int], _step_ms: float) -> None:
    shard = RouterShard(RouterConfig(), SECRET)
    await shard.start(HOST, ports["router"])
    await asyncio.Event().wait()


async def _replica(ports: dict[str, int], step_ms: float) -> None:
    demo = ServedModel.load("demo", ModelConfig().location)
    vocab_size = demo.tokenizer.vocab_size
    config = EngineConfig(block_size=BLOCK_SIZE, max_num_seqs=MAX_NUM_SEQS, max_batched_tokens=1 << 16)
    info = EngineInfo(
        model_path="null", architecture="Null", weights_revision="0", dtype="none", device="cpu",
        vocab_size=vocab_size, max_model_len=4096, block_size=BLOCK_SIZE, num_blocks=NUM_BLOCKS,
        max_num_seqs=MAX_NUM_SEQS,
    )  # fmt: skip
    executor = ChainExecutor(vocab_size, NUM_BLOCKS, BLOCK_SIZE, step_ms / 1000)
    core = EngineCore(Scheduler(config, info), executor)
    loop = asyncio.get_running_loop()
    engine = EngineLoop(
        core,
        on_step=lambda chunks, load: loop.call_soon_threadsafe(server.on_step, chunks, load),
        on_dead=lambda error: None,
    )
    server = ReplicaServer(engine, SECRET)
    await server.listen(HOST, ports["replica"])
    link = RouterLink(lambda: _find(ports), FromRouter, ("replica", "r0"), server)
    engine.start()
    server.announce(ReplicaInfo("r0", MODEL, HOST, ports["replica"], [0], "bench", info), core.scheduler.load())
    await asyncio.Event().wait()
    link.close()


async def _gateway(ports: dict[str, int], _step_ms: float) -> None:
    dispatcher = Dispatcher("bench")
    links = GatewayLinks(dispatcher, SECRET)
    link = RouterLink(lambda: _find(ports), FromRouter, ("gateway", "bench"), links)
    models = {MODEL: ServedModel.load(MODEL, ModelConfig().location)}
    app = build_gateway(models, dispatcher, GatewayConfig())
    settings = uvicorn.Config(
        app, host=HOST, port=ports["gateway"], http="httptools", ws="none", lifespan="off", log_level="warning",
        access_log=False,
    )  # fmt: skip
    await uvicorn.Server(settings).serve()
    link.close()


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(
        "concurrency", "tokens/s", "requests/s", "TTFT p50 / p99 ms", "between events p99 ms",
        "CPU us per token: gateway", "replica", "router", "CPU us per request, all",
    )  # fmt: skip
    for row in rows:
        cpu = row["cpu_us_per_token"]
        table.add_row(
            str(row["concurrency"]), str(row["output_tokens_per_s"]), str(row["requests_per_s"]),
            f"{row['ttft_ms'].get('p50')} / {row['ttft_ms'].get('p99')}", str(row["itl_ms"].get("p99")),
            str(cpu["gateway"]), str(cpu["replica"]), str(cpu["router"]), str(row["cpu_us_per_request"]),
        )  # fmt: skip
    Console().print(table)
