"""The serving layer's own cost: everything but the model, whose place a null engine takes.

Gateway (HTTP, tokenizer, detokenizer), router shard and one replica run in processes of their own, as in production,
joined by the same sockets. Two questions:

    capacity   the engine emits tokens at once: how many the layer carries, and the CPU time it takes for them
    latency    the engine's step takes `--step-ms`: how much later the first token comes than from the same engine
               in the client's own process, under the same closed-loop load
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import random
import time
from collections.abc import Awaitable, Callable
from multiprocessing.process import BaseProcess
from typing import Any

import httpx
import psutil
import uvloop
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cluster.config import ModelConfig
from deployments.commands.bench import percentiles, summarise
from deployments.commands.http_load import Timeline, streamed_completion
from engine.engine_loop import EngineLoop
from engine.request import EngineLoad, GenerateRequest, SamplingParams, TokenChunk
from scripts.null_app import HOST, MODEL, PARTS, free_ports, null_engine, run_part


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 32, 256])
    parser.add_argument("--requests", type=int, default=512, help="per concurrency (32 times it, where that is less)")
    parser.add_argument("--input-tokens", type=int, default=128)
    parser.add_argument(
        "--output-tokens", type=int, default=64, help="on average; lengths differ by up to a half of it"
    )
    parser.add_argument("--step-ms", type=float, default=10.0, help="the engine's step in the latency part")
    parser.add_argument("--tokenizer", default=ModelConfig().location, help="model directory (default: the demo model)")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    capacity = _with_app(args, 0.0, lambda url, parts, c: _measure_capacity(url, parts, c, args))
    latency = _with_app(args, args.step_ms, lambda url, parts, c: _measure_latency(url, parts, c, args))
    if args.json:
        print(json.dumps({"capacity": capacity, "latency": latency}))
    else:
        _show_capacity(capacity)
        _show_latency(latency, args.step_ms)
    return 0


Measure = Callable[[str, dict[str, BaseProcess], int], dict[str, Any]]


def _with_app(args: argparse.Namespace, step_ms: float, measure: Measure) -> list[dict[str, Any]]:
    """Start the app in three processes, measure each concurrency, end them."""
    context = multiprocessing.get_context("spawn")
    ports = free_ports()
    parts = {
        name: context.Process(target=run_part, args=(name, ports, step_ms, args.tokenizer), daemon=True)
        for name in PARTS
    }
    for process in parts.values():
        process.start()
    try:
        url = f"http://{HOST}:{ports['gateway']}"
        _wait_ready(url)
        uvloop.run(_closed_loop(64, 16, lambda number: _over_http(url, number, args)))  # warm up
        return [measure(url, parts, concurrency) for concurrency in args.concurrency]
    finally:
        for process in parts.values():
            process.terminate()
            process.join(5)


def _measure_capacity(
    url: str, parts: dict[str, BaseProcess], concurrency: int, args: argparse.Namespace
) -> dict[str, Any]:
    num_requests = min(args.requests, 32 * concurrency)
    before = _cpu_seconds(parts)
    timelines = uvloop.run(_closed_loop(num_requests, concurrency, lambda number: _over_http(url, number, args)))
    used = {name: after - before[name] for name, after in _cpu_seconds(parts).items()}
    num_tokens = _total_tokens(num_requests, args)
    cpu = {name: round(1e6 * seconds / num_tokens, 1) for name, seconds in used.items()}
    per_request = round(1e6 * sum(used.values()) / num_requests)
    report = summarise(timelines, num_tokens)
    return {"concurrency": concurrency, **report, "cpu_us_per_token": cpu, "cpu_us_per_request": per_request}


def _measure_latency(
    url: str, parts: dict[str, BaseProcess], concurrency: int, args: argparse.Namespace
) -> dict[str, Any]:
    num_requests = min(args.requests, 16 * concurrency)
    before = _cpu_seconds(parts)
    http = uvloop.run(_closed_loop(num_requests, concurrency, lambda number: _over_http(url, number, args)))
    used = {name: after - before[name] for name, after in _cpu_seconds(parts).items()}
    direct = uvloop.run(_direct(num_requests, concurrency, args))
    failed = sum(bool(timeline.error) for timeline in http)
    served = percentiles([timeline.ttft_s for timeline in http if not timeline.error])
    alone = percentiles([timeline.ttft_s for timeline in direct])
    added = {point: round(served[point] - alone[point], 2) for point in served}
    num_tokens = _total_tokens(num_requests, args)
    cpu = {name: round(1e6 * seconds / num_tokens, 1) for name, seconds in used.items()}
    return {
        "concurrency": concurrency, "failed": failed, "ttft_ms": served, "engine_ttft_ms": alone, "added_ms": added,
        "cpu_us_per_token": cpu,
    }  # fmt: skip


async def _closed_loop(
    num_requests: int, concurrency: int, request: Callable[[int], Awaitable[Timeline]]
) -> list[Timeline]:
    gate = asyncio.Semaphore(concurrency)

    async def one(number: int) -> Timeline:
        async with gate:
            return await request(number)

    return list(await asyncio.gather(*(one(number) for number in range(num_requests))))


def _num_tokens(number: int, args: argparse.Namespace) -> int:
    """Lengths differ, or all streams of a closed loop would end and begin at the same steps."""
    return random.Random(number).randint(args.output_tokens // 2, args.output_tokens * 3 // 2)


def _total_tokens(num_requests: int, args: argparse.Namespace) -> int:
    return sum(_num_tokens(number, args) for number in range(num_requests))


def _prompt(number: int, args: argparse.Namespace) -> list[int]:
    return [(7 * number + i) % 1000 + 300 for i in range(args.input_tokens)]


async def _over_http(url: str, number: int, args: argparse.Namespace) -> Timeline:
    body: dict[str, object] = {
        "model": MODEL, "prompt": _prompt(number, args), "max_tokens": _num_tokens(number, args),
        "ignore_eos": True, "temperature": 0,
    }  # fmt: skip
    return await streamed_completion(f"{url}/v1/completions", body)


async def _direct(num_requests: int, concurrency: int, args: argparse.Namespace) -> list[Timeline]:
    """The same load on the same engine in this process: no HTTP, no router, no socket."""
    loop = asyncio.get_running_loop()
    waiting: dict[str, tuple[Timeline, asyncio.Future[None]]] = {}

    def take(chunks: list[TokenChunk], now: float) -> None:
        for chunk in chunks:
            timeline, ended = waiting[chunk.request_id]
            timeline.events_at.append(now)
            if chunk.finish is not None:
                ended.set_result(None)

    def on_step(chunks: list[TokenChunk], load: EngineLoad) -> None:
        if chunks:
            loop.call_soon_threadsafe(take, chunks, time.perf_counter())

    core, _info = null_engine(args.step_ms)
    engine = EngineLoop(core, on_step=on_step, on_dead=lambda error: None)
    engine.start()

    async def one(number: int) -> Timeline:
        timeline, name = Timeline(time.perf_counter()), str(number)
        waiting[name] = (timeline, loop.create_future())
        sampling = SamplingParams(max_tokens=_num_tokens(number, args), seed=0, ignore_eos=True)
        engine.submit(GenerateRequest(request_id=name, prompt_token_ids=_prompt(number, args), sampling=sampling))
        await waiting[name][1]
        return timeline

    try:
        return await _closed_loop(num_requests, concurrency, one)
    finally:
        engine.close()


def _cpu_seconds(parts: dict[str, BaseProcess]) -> dict[str, float]:
    times = {name: psutil.Process(process.pid).cpu_times() for name, process in parts.items()}
    return {name: used.user + used.system for name, used in times.items()}


def _wait_ready(url: str) -> None:
    body = {"model": MODEL, "prompt": [300], "max_tokens": 1}
    for _ in track(range(300), "starting", console=Console(stderr=True), transient=True):
        with contextlib.suppress(httpx.HTTPError):
            if httpx.post(f"{url}/v1/completions", json=body, timeout=2.0).status_code == 200:
                return
        time.sleep(0.1)
    raise SystemExit("the gateway did not become ready within 30 s")


def _show_capacity(rows: list[dict[str, Any]]) -> None:
    table = Table("streams", "tokens/s", "requests/s", "gateway", "replica", "router", "per request, all")
    table.title = "capacity: the engine takes no time; CPU us per token of each part"
    for row in rows:
        cpu = [str(row["cpu_us_per_token"][part]) for part in ("gateway", "replica", "router")]
        rates = [str(row["output_tokens_per_s"]), str(row["requests_per_s"])]
        table.add_row(str(row["concurrency"]), *rates, *cpu, str(row["cpu_us_per_request"]))
    Console().print(table)


def _show_latency(rows: list[dict[str, Any]], step_ms: float) -> None:
    table = Table("streams", "TTFT p50 / p99", "engine alone", "added", "gateway", "replica", "router")
    table.title = f"latency in ms: the engine's step takes {step_ms:g} ms; CPU us per token of each part"
    for row in rows:
        pairs = (row["ttft_ms"], row["engine_ttft_ms"], row["added_ms"])
        cpu = [str(row["cpu_us_per_token"][part]) for part in ("gateway", "replica", "router")]
        table.add_row(str(row["concurrency"]), *(f"{pair['p50']} / {pair['p99']}" for pair in pairs), *cpu)
    Console().print(table)
