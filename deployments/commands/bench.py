"""`manta bench`: load on a running OpenAI-compatible server, and what its clients saw."""

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from cluster.client import bearer
from deployments.commands.counting_bar import counting_bar
from deployments.commands.http_load import Timeline, streamed_completion
from deployments.commands.key import add_key_argument
from deployments.simulation.workload import Arrival, write_trace
from engine.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="server (default: %(default)s)")
    add_key_argument(parser)
    parser.add_argument("--model", help="served name (default: the first of /v1/models)")
    parser.add_argument("--requests", type=int, default=64, metavar="N")
    parser.add_argument("--concurrency", type=int, default=16, metavar="C", help="requests at a time (closed loop)")
    parser.add_argument("--rate", type=float, metavar="R", help="requests per second, Poisson (open loop)")
    parser.add_argument("--input-tokens", default="128", metavar="A[:B]", help="prompt length, or a range")
    parser.add_argument("--output-tokens", default="64", metavar="A[:B]", help="output length, or a range")
    parser.add_argument(
        "--prefix-tokens", type=int, default=0, metavar="P", help="prompt tokens shared by all requests"
    )
    parser.add_argument("--vocab", type=int, default=1000, metavar="V", help="prompts are random token ids below V")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--write-trace", type=Path, metavar="FILE", help="with --rate: write the load for `manta simulate`, and end"
    )
    parser.add_argument("--json", action="store_true", help="one JSON line instead of the table")


def run(args: argparse.Namespace) -> int:
    if args.write_trace is not None:
        write_trace(args.write_trace, _arrivals(args))
        return 0
    model = args.model or _first_model(args.url, bearer(args.key))
    bodies = list(_bodies(args, model))
    timelines = asyncio.run(_offer(args, bodies))
    report = summarise(timelines, sum(body["max_tokens"] for body in bodies))
    if args.json:
        print(json.dumps({"model": model, **report}))
    else:
        _show(report, Console())
    for error in sorted({timeline.error for timeline in timelines if timeline.error})[:3]:
        print(f"error: {error}", file=sys.stderr)
    return 1 if report["failed"] else 0


def _first_model(url: str, headers: dict[str, str]) -> str:
    answer = httpx.get(f"{url}/v1/models", headers=headers, timeout=10.0)
    answer.raise_for_status()
    return str(answer.json()["data"][0]["id"])


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    return int(low), int(high or low)


def _bodies(args: argparse.Namespace, model: str) -> Any:
    draw = random.Random(args.seed)
    prefix = [draw.randrange(args.vocab) for _ in range(args.prefix_tokens)]
    inputs, outputs = _range(args.input_tokens), _range(args.output_tokens)
    for _ in range(args.requests):
        prompt = prefix + [draw.randrange(args.vocab) for _ in range(draw.randint(*inputs))]
        yield {
            "model": model, "prompt": prompt, "max_tokens": draw.randint(*outputs),
            "temperature": 0.0, "ignore_eos": True,
        }  # fmt: skip


def _gaps_s(args: argparse.Namespace) -> Iterator[float]:
    """Seconds from each request to the next, at the rate asked for; endless."""
    draw = random.Random(args.seed + 1)
    while True:
        yield draw.expovariate(args.rate)


def _arrivals(args: argparse.Namespace) -> Iterator[Arrival]:
    """The same load as a trace."""
    if args.rate is None:
        raise ConfigError("write_trace", str(args.write_trace), "give --rate: a closed loop has no arrival times")
    starts = itertools.accumulate(_gaps_s(args), initial=0.0)
    for at, body in zip(starts, _bodies(args, ""), strict=False):
        group = 1 if args.prefix_tokens else 0
        yield Arrival(at, len(body["prompt"]), body["max_tokens"], group=group, prefix_tokens=args.prefix_tokens)


async def _offer(args: argparse.Namespace, bodies: list[dict[str, Any]]) -> list[Timeline]:
    """Send all requests, so many at a time or at such a rate; the start of each is when it was meant to start."""
    gate = asyncio.Semaphore(args.concurrency if args.rate is None else len(bodies))
    gaps_s = None if args.rate is None else _gaps_s(args)
    headers = bearer(args.key)
    with counting_bar() as progress:
        bar = progress.add_task("requests", total=len(bodies))

        async def one(body: dict[str, Any]) -> Timeline:
            async with gate:
                timeline = await streamed_completion(f"{args.url}/v1/completions", body, headers)
            progress.advance(bar)
            return timeline

        tasks = []
        for body in bodies:
            tasks.append(asyncio.create_task(one(body)))
            if gaps_s is not None:
                await asyncio.sleep(next(gaps_s))
        return await asyncio.gather(*tasks)


def summarise(timelines: Sequence[Timeline], asked_tokens: int) -> dict[str, Any]:
    """Counts, rates and percentiles. Milliseconds for latencies; tokens are those asked for (`ignore_eos`)."""
    good = [timeline for timeline in timelines if not timeline.error]
    began = min((timeline.started_at for timeline in timelines), default=time.perf_counter())
    ended = max((timeline.ended_at for timeline in timelines), default=began)
    seconds = max(ended - began, 1e-9)
    gaps = [gap for timeline in good for gap in timeline.gaps_s]
    share = len(good) / max(1, len(timelines))
    return {
        "requests": len(timelines),
        "failed": len(timelines) - len(good),
        "seconds": round(seconds, 3),
        "requests_per_s": round(len(good) / seconds, 2),
        "output_tokens_per_s": round(asked_tokens * share / seconds, 1),
        "ttft_ms": percentiles([timeline.ttft_s for timeline in good]),
        "itl_ms": percentiles(gaps),
        "latency_ms": percentiles([timeline.ended_at - timeline.started_at for timeline in good]),
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and max in milliseconds (nearest rank)."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    points = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {
        name: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)
        for name, share in points.items()
    }


def _show(report: dict[str, Any], console: Console) -> None:
    console.print(
        f"{report['requests']} requests ({report['failed']} failed) in {report['seconds']} s: "
        f"{report['output_tokens_per_s']} output tokens/s, {report['requests_per_s']} requests/s"
    )
    table = Table("ms", "p50", "p90", "p99", "max")
    for key, name in (("ttft_ms", "first token"), ("itl_ms", "between events"), ("latency_ms", "whole answer")):
        table.add_row(name, *(f"{report[key].get(point, float('nan')):.1f}" for point in ("p50", "p90", "p99", "max")))
    console.print(table)
