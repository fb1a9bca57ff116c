"""Far more load than can be served: what is still served, how the rest is refused, and whom a flooding tenant hurts.

`manta serve chain` on this machine, paced so that engines and not the two cores are the limit. Open loop: requests come
at their times, whether or not the earlier ones are done, and are not repeated. Times count from when a request was due.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import uvloop
import yaml
from rich.console import Console
from rich.progress import Progress

from cluster.config import CHAIN_MODEL
from deployments.app import APP_NAME
from deployments.commands.bench import percentiles
from deployments.commands.http_load import Timeline, streamed_completion
from scripts.chaos_run.cluster_hand import ClusterHand
from scripts.chaos_run.nemesis import ClusterView
from scripts.chaos_run.served_app import ServedApp, free_port

SETTLE_S = 3.0  #: at the beginning of a load, which is not counted
PROBES_S, PROBE_EVERY_S = 6.0, 0.2  #: of one token each, so that they are no load
TENANT_HEADER = "X-Tenant"
FLOOD = "flood"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload (default: 60)")
    parser.add_argument("--times", type=float, default=10.0, help="the capacity (default: 10)")
    parser.add_argument("--step", type=float, default=0.05, help="seconds of an engine's step (default: 0.05)")
    parser.add_argument("--slots", type=int, default=8, help="sequences per engine (default: 8)")
    parser.add_argument("--queue", type=int, default=8, help="requests that may wait in a shard (default: 8)")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--tenants", type=int, default=4, help="that behave, in the fairness part (default: 4)")
    parser.add_argument("--share", type=float, default=0.6, help="of the capacity, that they ask for (default: 0.6)")
    parser.add_argument("--part", choices=("overload", "fairness", "both"), default="both")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    console = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="manta-overload-") as folder:
        config = Path(folder) / "manta.yaml"
        config.write_text(yaml.safe_dump(_config(args)))
        app = ServedApp(["-m", "deployments.cli", "serve", "--config", str(config)], Path(folder) / "server.log")
        try:
            app.wait_ready(lambda line: console.print(f"server: {line}", markup=False, style="dim", soft_wrap=True))
            hand = ClusterHand(app.ray_address, APP_NAME)
            try:
                report = uvloop.run(_measure(args, app.url, hand.view(), console))
            finally:
                hand.close()
        finally:
            app.stop()
    if args.json:
        print(json.dumps(report))
    else:
        _show(report, Console(highlight=False))
    return 0


def _config(args: argparse.Namespace) -> dict[str, Any]:
    engine = {"max_num_seqs": args.slots}
    model = {"model": CHAIN_MODEL, "replicas": 2, "engine": engine, "chain": {"step_s": args.step}}
    return {
        "models": [model],
        "gateway": {"port": free_port(), "replicas": 1, "edge": "direct", "tenant_header": TENANT_HEADER},
        "router": {"shards": 2, "max_queued_requests": args.queue},
    }


class Load:
    """Requests of one shape to one server; each has a prompt of its own."""

    def __init__(self, url: str, args: argparse.Namespace) -> None:
        self._url, self._args = f"{url}/v1/completions", args
        self._draw = random.Random(1)

    def _body(self, length: int | None) -> dict[str, object]:
        args = self._args
        prompt = [self._draw.randrange(2000) for _ in range(args.prompt_tokens)]
        length = length or self._draw.randint(args.output_tokens // 2, args.output_tokens * 3 // 2)
        return {"model": CHAIN_MODEL, "prompt": prompt, "max_tokens": length, "ignore_eos": True}

    async def one(self, due: float, tenant: str, length: int | None = None) -> Timeline:
        """Of `length` tokens, or one of the usual lengths."""
        timeline = await streamed_completion(self._url, self._body(length), {TENANT_HEADER: tenant})
        timeline.started_at = due
        return timeline

    async def closed(self, concurrency: int, seconds: float) -> list[Timeline]:
        """So many at a time; who is done asks again."""
        until = time.perf_counter() + seconds
        found: list[Timeline] = []

        async def ask_again() -> None:
            while time.perf_counter() < until:
                timeline = await self.one(time.perf_counter(), "peak")
                found.append(timeline)
                if timeline.error:
                    await asyncio.sleep(timeline.retry_after_s or 0.1)

        await asyncio.gather(*(ask_again() for _ in range(concurrency)))
        return found

    async def opened(self, rate: float, seconds: float, tenant: str) -> list[Timeline]:
        """A Poisson process; returns when the last has been answered."""
        draw, due = random.Random(tenant), time.perf_counter()
        until, tasks = due + seconds, []
        while due < until:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(self.one(due, tenant)))
            due += draw.expovariate(rate)
        return list(await asyncio.gather(*tasks))


async def _measure(args: argparse.Namespace, url: str, view: ClusterView, console: Console) -> dict[str, Any]:
    load = Load(url, args)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("idle server", total=None)

        def say(text: str) -> None:
            progress.update(bar, description=text)

        alone = [await load.one(time.perf_counter(), "alone", 1) for _ in range(40)]
        say("peak")
        began = time.perf_counter()
        peak = goodput(await load.closed(2 * args.slots + args.queue, 20.0), began, 20.0)
        report: dict[str, Any] = {
            "alone_ttft_ms": percentiles([timeline.ttft_s for timeline in alone]),
            "peak_requests_per_s": peak,
        }
        if args.part != "fairness":
            say(f"{args.times:g} times as much")
            report["overload"] = await _overload(load, args, peak, view, report["alone_ttft_ms"]["max"] / 1000)
        if args.part != "overload":
            report["fairness"] = await _fairness(load, args, peak, say)
    return report


def goodput(timelines: Sequence[Timeline], began: float, seconds: float) -> float:
    """Requests answered whole, per second, after the beginning of the load."""
    start, end = began + SETTLE_S, began + seconds
    done = sum(not timeline.error and start <= timeline.ended_at < end for timeline in timelines)
    return round(done / (end - start), 2)


async def _overload(
    load: Load, args: argparse.Namespace, peak: float, view: ClusterView, alone_s: float
) -> dict[str, Any]:
    memory = Memory(view)
    watching = asyncio.create_task(memory.watch())
    began = time.perf_counter()
    flooding = asyncio.create_task(load.opened(args.times * peak, args.seconds, "default"))
    await asyncio.sleep(args.seconds)
    recovery_s = await _recovery(load, 1.5 * alone_s)
    timelines = await flooding
    watching.cancel()
    refused = [timeline for timeline in timelines if timeline.status in (429, 503)]
    others = [timeline for timeline in timelines if timeline.error and timeline not in refused]
    served = goodput(timelines, began, args.seconds)
    return {
        "offered_per_s": round(len(timelines) / args.seconds, 1),
        "served_per_s": served,
        "share_of_peak": round(served / peak, 3),
        "refused": len(refused),
        "refusal_ms": percentiles([timeline.ended_at - timeline.started_at for timeline in refused]),
        "without_retry_after": sum(timeline.retry_after_s is None for timeline in refused),
        "retry_after_s": sorted({timeline.retry_after_s for timeline in refused if timeline.retry_after_s is not None}),
        "other_failures": sorted({timeline.error[:120] for timeline in others}),
        "recovery_s": recovery_s,
        "rss_mib": memory.grown(),
    }


async def _recovery(load: Load, good_s: float) -> float | None:
    """Seconds after the load until every probe's first token is as fast as alone (1.5 times the slowest)."""
    began = time.perf_counter()
    probes = []
    while (due := time.perf_counter()) < began + PROBES_S:
        probes.append(asyncio.create_task(load.one(due, "probe", 1)))
        await asyncio.sleep(PROBE_EVERY_S)
    found = await asyncio.gather(*probes)
    bad = [probe.started_at for probe in found if probe.error or probe.ttft_s > good_s]
    after = [probe.started_at for probe in found if not bad or probe.started_at > bad[-1]]
    return round(after[0] - began, 2) if after else None


class Memory:
    """Resident memory of the server's parts over a time, in MiB."""

    def __init__(self, view: ClusterView) -> None:
        kinds = {"gateway": view.gateways, "router": view.shards, "replica": view.replicas}
        self._processes = {kind: [psutil.Process(one.pid) for one in found] for kind, found in kinds.items()}
        self._samples: dict[str, list[float]] = {kind: [] for kind in kinds}

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            for kind, processes in self._processes.items():
                with suppress(psutil.NoSuchProcess):
                    self._samples[kind].append(sum(process.memory_info().rss for process in processes) / 2**20)
            await asyncio.sleep(0.5)

    def grown(self) -> Mapping[str, tuple[float, float, float]]:
        """At the start, after a quarter of the time, at the end."""
        return {
            kind: (round(found[0], 1), round(found[len(found) // 4], 1), round(found[-1], 1))
            for kind, found in self._samples.items()
        }


async def _fairness(load: Load, args: argparse.Namespace, peak: float, say: Callable[[str], None]) -> dict[str, Any]:
    """The same tenants without and with one that floods."""
    rate = args.share * peak / args.tenants

    async def behaving() -> list[Timeline]:
        """Without those of the first seconds: the tenants are at work when counting and the flood begin."""
        began = time.perf_counter()
        asked = (load.opened(rate, SETTLE_S + args.seconds, f"tenant-{number}") for number in range(args.tenants))
        found = [timeline for tenant in await asyncio.gather(*asked) for timeline in tenant]
        return [timeline for timeline in found if timeline.started_at >= began + SETTLE_S]

    async def flooding() -> list[Timeline]:
        await asyncio.sleep(SETTLE_S)
        return await load.opened(args.times * peak, args.seconds, FLOOD)

    say("tenants that behave")
    without = await behaving()
    say("the same, and one that floods")
    flooded, flood = await asyncio.gather(behaving(), flooding())
    before, after = (
        percentiles([timeline.ttft_s for timeline in found if not timeline.error]) for found in (without, flooded)
    )
    return {
        "requests": len(flooded),
        "refused": sum(bool(timeline.error) for timeline in flooded),
        "refused_without": sum(bool(timeline.error) for timeline in without),
        "ttft_ms_without": before,
        "ttft_ms_with": after,
        "p99_ratio": round(after["p99"] / before["p99"], 2),
        "flood_offered": len(flood),
        "flood_served": sum(not timeline.error for timeline in flood),
        "flood_statuses": {status: sum(one.status == status for one in flood) for status in {f.status for f in flood}},
    }


def _show(report: dict[str, Any], console: Console) -> None:
    for key, value in report.items():
        if isinstance(value, dict) and not key.endswith("_ms"):
            console.print(f"[bold]{key}[/bold]")
            for name, found in value.items():
                console.print(f"  {name}: {found}")
        else:
            console.print(f"{key}: {value}")
