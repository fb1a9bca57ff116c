"""What limits cost a request: admission and settling, with a router shard as their keeper, or a Redis if one is named.

Gateway and keeper are processes of their own, as in production, joined by the same sockets. `wait` is how much later a
request reaches the router; `cpu` is the gateway's CPU time for it.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from cluster.auth.principal import Principal
from cluster.calls.record import Attempt, Caller, CallRecord
from cluster.config import GatewayConfig, MantaConfig, ModelConfig, RouterConfig
from cluster.metrics.instruments import Instruments
from cluster.quotas.config import Limits, QuotaConfig, TenantLimits
from cluster.streams.dispatcher import Dispatcher
from cluster.streams.stream_copies import StreamCopies
from deployments.gateway_links import GatewayLinks
from deployments.quota_links import QuotaLinks
from deployments.router_link import RouterAddress, Shards
from deployments.router_shard import RouterShard

HOST, SECRET, MANY = "127.0.0.1", b"bench", 10**9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 32, 256])
    parser.add_argument("--requests", type=int, default=10_000, help="per concurrency")
    parser.add_argument("--redis", default="", help="URL of a Redis to measure too; it is written to")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    shard = multiprocessing.get_context("spawn").Process(target=_run_shard, args=(sender,), daemon=True)
    shard.start()
    try:
        found = uvloop.run(_measure_all(args, receiver.recv()))
    finally:
        shard.kill()
    if args.json:
        print(json.dumps(found))
    else:
        _show(found)
    return 0


def _run_shard(sender: Connection) -> None:
    async def serve() -> None:
        sender.send(await RouterShard(RouterConfig(shards=1), SECRET).start(HOST))
        await asyncio.Event().wait()

    uvloop.run(serve())


async def _measure_all(args: argparse.Namespace, port: int) -> list[dict[str, Any]]:
    keepers = {"no limits": None, "router shard": "", **({"redis": args.redis} if args.redis else {})}
    return [
        {"keeper": keeper, "concurrency": concurrency, **await _measure(redis, port, concurrency, args.requests)}
        for keeper, redis in keepers.items()
        for concurrency in args.concurrency
    ]


async def _measure(redis: str | None, port: int, concurrency: int, num_requests: int) -> dict[str, float]:
    limits = Limits(requests_per_minute=MANY, tokens_per_minute=MANY)
    tenant = TenantLimits(requests_per_minute=MANY, tokens_per_minute=MANY, models={"m": limits})
    quotas = QuotaConfig() if redis is None else QuotaConfig(default=tenant, redis=redis)
    models = (ModelConfig(model="chain", name="m"),)
    config = MantaConfig(models=models, gateway=GatewayConfig(), router=RouterConfig(shards=1), quotas=quotas)
    name = f"bench{time.monotonic_ns()}"
    links, dispatcher = QuotaLinks(config, name, Instruments()), Dispatcher(name)

    async def find(shard: int) -> RouterAddress:
        return RouterAddress(HOST, port, SECRET)

    gateway = GatewayLinks(dispatcher, StreamCopies(0.0), [links], Shards(1, find, SECRET))
    waits, numbers = [], itertools.count()

    async def ask(count: int) -> None:
        for _ in range(count):
            record = CallRecord(f"call{next(numbers)}", "m", Caller(principal=Principal(tenant="t")), 0.0)
            record.num_prompt_tokens, record.max_output_tokens = 100, 100
            began = time.perf_counter()
            await links.quotas.admit(record)
            waits.append(time.perf_counter() - began)
            record.began_attempt(Attempt("r", 0.0, 0.0, 0.0, None))
            record.num_output_tokens = 50
            links.quotas.ended(record)

    await ask(100)
    waits.clear()
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(ask(num_requests // concurrency) for _ in range(concurrency)))
    elapsed_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    gateway.close()
    waits.sort()
    p50, p99 = (1e6 * waits[int(share * len(waits))] for share in (0.5, 0.99))
    return {"wait_p50_us": p50, "wait_p99_us": p99, "cpu_us": 1e6 * cpu_s / len(waits), "per_s": len(waits) / elapsed_s}


def _show(found: list[dict[str, Any]]) -> None:
    table = Table("keeper", "at once", "wait p50 us", "wait p99 us", "cpu us", "requests/s", box=None)
    for row in found:
        numbers = (row[name] for name in ("wait_p50_us", "wait_p99_us", "cpu_us", "per_s"))
        table.add_row(row["keeper"], str(row["concurrency"]), *(f"{number:,.0f}" for number in numbers))
    Console().print(table)
