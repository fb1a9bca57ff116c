"""What metrics cost: the gateway's CPU per request and token with them and without, and a scrape of many replicas.

All in one process and without sockets: shard and replica are stand-ins that answer at once, so the CPU time is that of
the gateway's application and dispatcher.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any, TypeVar

import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from cluster.auth.principal import Principal
from cluster.calls.calls import Calls
from cluster.calls.record import Attempt, Caller, CallRecord
from cluster.config import GatewayConfig, ModelConfig, RouterConfig
from cluster.frames import (
    Announce,
    Enqueue,
    Frame,
    FrameDecoder,
    FromRouter,
    Grant,
    Pulse,
    ReplicaInfo,
    ReplicaUp,
    Report,
    Scraped,
    Submit,
    Tokens,
    encode,
)
from cluster.gateway.app import build_gateway
from cluster.metrics.exposition import render
from cluster.metrics.gateway_metrics import GatewayMetrics
from cluster.metrics.snapshot import newest
from cluster.streams.dispatcher import Dispatcher
from cluster.text.served_model import ServedModel
from deployments.router_shard import RouterShard
from deployments.settled_heap import settle_heap
from engine.config import EngineInfo
from engine.request import EngineLoad, FinishReason, GenerateRequest, TokenChunk

NUM_GATEWAYS = 4
T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--streams", type=int, default=32, help="at a time")
    parser.add_argument("--requests", type=int, default=64, help="in each round")
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=41, help="of each kind, in turn")
    parser.add_argument("--replicas", type=int, nargs="*", default=[1, 10, 100, 1000], help="on the page of a scrape")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    model = ServedModel.load("m", ModelConfig().location)
    calls = uvloop.run(_measure_calls(model, args))
    scrapes = [_measure_scrape(number) for number in args.replicas]
    if args.json:
        print(json.dumps({"calls": calls, "scrapes": scrapes}))
    else:
        _show(calls, scrapes, Console())
    return 0


# Calls


class NullCluster:
    """A shard that grants at once, and a replica whose steps take no time."""

    is_open = True

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher, self._loop = dispatcher, asyncio.get_running_loop()
        self._running: dict[str, tuple[GenerateRequest, int]] = {}
        dispatcher.on_router(0, self)
        dispatcher.on_router_frame(0, Pulse())
        dispatcher.on_router_frame(0, ReplicaUp(_replica(0)))
        dispatcher.on_replica("r0", self)

    def send(self, frame: Frame) -> None:
        if isinstance(frame, Enqueue):
            grant = Grant(frame.request_id, frame.attempt, "r0", 1.0)
            self._loop.call_soon(self._dispatcher.on_router_frame, 0, grant)
        elif isinstance(frame, Submit):
            if not self._running:
                self._loop.call_soon(self._step)
            self._running[frame.request.request_id] = (frame.request, 0)

    def close(self) -> None:
        """Nothing is open."""

    def _step(self) -> None:
        chunks = []
        for name, (request, index) in list(self._running.items()):
            is_last = index + 1 == request.sampling.max_tokens
            chunks.append(TokenChunk(name, 0, index, [300], finish=FinishReason.LENGTH if is_last else None))
            self._running[name] = (request, index + 1)
            if is_last:
                del self._running[name]
        self._dispatcher.on_replica_frame("r0", Tokens(1, chunks))
        if self._running:
            self._loop.call_soon(self._step)


async def _measure_calls(model: ServedModel, args: argparse.Namespace) -> dict[str, float]:
    """Least CPU time of a request without and with metrics, in microseconds; the median of the rounds' ratios."""
    apps = {kind: _app(model, kind == "with") for kind in ("without", "with")}
    settle_heap()
    rounds: list[dict[str, float]] = []
    for _ in range(args.rounds):
        rounds.append({})
        for kind, app in apps.items():
            began = time.process_time()
            await _load(app, args)
            rounds[-1][kind] = 1e6 * (time.process_time() - began) / args.requests
    least = {kind: min(one[kind] for one in rounds) for kind in apps}
    return {**least, "ratio": median(one["with"] / one["without"] for one in rounds)}


def _app(model: ServedModel, with_metrics: bool) -> Any:
    dispatcher = Dispatcher("bench")
    cluster = NullCluster(dispatcher)
    assert cluster.is_open
    if not with_metrics:
        return build_gateway({"m": model}, dispatcher, GatewayConfig())
    metrics = GatewayMetrics(dispatcher)
    calls = Calls(sinks=[metrics.calls])
    return build_gateway({"m": model}, dispatcher, GatewayConfig(), calls=calls, metrics=metrics)


async def _load(app: Any, args: argparse.Namespace) -> None:
    body = msgspec.json.encode(
        {"model": "m", "prompt": list(range(300, 428)), "max_tokens": args.output_tokens, "ignore_eos": True,
         "stream": True}
    )  # fmt: skip
    gate = asyncio.Semaphore(args.streams)

    async def one() -> None:
        async with gate:
            await _request(app, body)

    await asyncio.gather(*(one() for _ in range(args.requests)))


async def _request(app: Any, body: bytes) -> None:
    messages = [{"type": "http.request", "body": body}]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "extensions": {},
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        assert message.get("status", 200) == 200

    await app(scope, receive, send)


# Scrapes


def _replica(number: int) -> ReplicaInfo:
    engine = EngineInfo(
        model_path="", architecture="", weights_revision="w", dtype="bfloat16", device="cpu", vocab_size=4096,
        max_model_len=4096, block_size=32, num_blocks=4096, max_num_seqs=256,
        startup_s={"download": 0.1, "compile": 1.0, "load": 2.0, "warm_up": 3.0},
    )  # fmt: skip
    return ReplicaInfo(f"r{number}", "m", "127.0.0.1", 1, [1], "host", engine)


def _measure_scrape(num_replicas: int) -> dict[str, float]:
    """Milliseconds of CPU in the shard and in the gateway that is asked; the longest piece of it; the page."""
    shard = RouterShard(RouterConfig(), b"bench")
    for number in range(num_replicas):
        info = _replica(number)
        shard.router.on_announce(Announce(info), 0.0)
        shard.router.on_report(info, Report(EngineLoad(100, 8, 0, 248, 4000, 10), []), 0.0)
    for number in range(NUM_GATEWAYS):
        shard.figures.said(_busy_gateway(number).snapshot(), 0.0)
    timings: dict[str, float] = {}
    answer = _timed(timings, "shard", lambda: encode(Scraped(1, shard.snapshots(0.0))))
    [scraped] = _timed(timings, "read", lambda: FrameDecoder[Scraped](FromRouter).feed(answer))
    pieces = render(newest(scraped.snapshots))
    num_bytes = num_lines = 0
    while piece := _timed(timings, "render", lambda: next(pieces, b"")):
        num_bytes, num_lines = num_bytes + len(piece), num_lines + piece.count(b"\n")
    return {"replicas": num_replicas, "lines": num_lines, "bytes": num_bytes, **timings}


def _busy_gateway(number: int) -> GatewayMetrics:
    """One that has served ten tenants of two models."""
    metrics = GatewayMetrics(Dispatcher(f"g{number}"))
    for model in ("m", "n"):
        for tenant in range(10):
            record = CallRecord("c", model, Caller(principal=Principal(tenant=f"tenant-{tenant}")), 0.0)
            record.num_choices = 1
            metrics.calls.began(record)
            attempt = Attempt("r0", 0.001, 0.01, 0.02, None)
            record.began_attempt(attempt)
            for index in range(64):
                record.got_tokens(attempt, 1, 0, 0.05 + index / 100)
            record.end("ok", 200, 1.0)
            metrics.calls.ended(record)
    return metrics


def _timed(timings: dict[str, float], name: str, work: Callable[[], T]) -> T:
    """Adds up under `name`, and keeps the longest as `longest`; milliseconds of CPU."""
    began = time.process_time()
    done = work()
    took = 1000 * (time.process_time() - began)
    timings[name] = timings.get(name, 0.0) + took
    timings["longest"] = max(timings.get("longest", 0.0), took) if name != "shard" else timings.get("longest", 0.0)
    return done


def _show(calls: dict[str, float], scrapes: list[dict[str, float]], console: Console) -> None:
    without, with_metrics = calls["without"], calls["with"]
    share = 100 * (calls["ratio"] - 1)
    console.print(
        f"a request: {without:.0f} us of CPU without metrics, {with_metrics:.0f} with; by rounds {share:+.1f} %"
    )
    table = Table("replicas", "lines", "KiB", "shard", "gateway", "its longest piece")
    table.title = "a scrape, ms of CPU"
    for row in scrapes:
        cells = (row["shard"], row["read"] + row["render"], row["longest"])
        sizes = (f"{row['replicas']}", f"{row['lines']}", f"{row['bytes'] / 1024:.0f}")
        table.add_row(*sizes, *(f"{cell:.1f}" for cell in cells))
    console.print(table)
