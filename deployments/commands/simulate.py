"""`manta simulate`: the real router and scheduler under simulated load, as a table, as JSON and as a picture."""

import argparse
import gc
import heapq
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from cluster.config import Policy, RouterConfig, TenantConfig
from cluster.config_reader import read_config
from deployments.commands.counting_bar import counting_bar
from deployments.simulation.cost_model import CostModel, read_cost_model, shipped_names
from deployments.simulation.faults import parse_fault
from deployments.simulation.results import Objective, Summary, summarise
from deployments.simulation.workload import Arrival, Lengths, Workload, merge, read_trace, write_trace
from deployments.simulation.world import Setup, World
from engine.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_cluster_arguments(parser.add_argument_group("cluster"))
    _add_load_arguments(parser.add_argument_group("load"))
    shown = parser.add_argument_group("results")
    shown.add_argument(
        "--ttft-objective", type=float, default=2.0, metavar="S", help="of goodput (default: %(default)s)"
    )
    shown.add_argument(
        "--token-objective", type=float, default=0.1, metavar="S", help="per later token (default: %(default)s)"
    )
    shown.add_argument("--plot", type=Path, metavar="FILE", help="draw a PNG (needs the extra `simulate`)")
    shown.add_argument("--json", action="store_true", help="one JSON line a policy instead of the table")


def _add_cluster_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--replicas", type=int, default=8, metavar="N")
    group.add_argument("--gateways", type=int, default=1, metavar="N")
    group.add_argument("--shards", type=int, metavar="K", help="router shards (default: as configured)")
    group.add_argument("--policy", default="", metavar="P[,P...]", help=f"compare: {', '.join(Policy)}")
    group.add_argument(
        "--cost-model", default="h100-guess", metavar="M",
        help=f"{', '.join(shipped_names())}, or a file of `scripts.bench engine --cost-model` (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--fault", action="append", default=[], metavar="F",
        help="kill:REPLICA@T[+BACK] or slow:REPLICAxFACTOR[@T+FOR], seconds; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--early-binding", action="store_true", help="replicas take all at once, so requests wait there (comparison)"
    )
    group.add_argument("--report-every", type=float, metavar="S", help="replicas report only so often (comparison)")
    group.add_argument("--config", metavar="FILE", help="YAML file: its router section is used")
    group.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                       help="a router setting, for example router.max_queued_requests=100")  # fmt: skip


def _add_load_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--requests", type=int, default=10_000, metavar="N")
    group.add_argument("--rate", type=float, metavar="R", help="requests per second (default: by --load)")
    group.add_argument("--load", type=float, default=0.8, metavar="X", help="share of the estimated capacity")
    group.add_argument(
        "--trace",
        type=Path,
        action="append",
        metavar="FILE",
        help="arrivals from a file of JSON lines; may be repeated",
    )
    group.add_argument("--write-trace", type=Path, metavar="FILE", help="write the arrivals down and end")
    group.add_argument("--prompt-tokens", type=lengths, default=Lengths(64, 1024), metavar="A:B")
    group.add_argument("--output-tokens", type=lengths, default=Lengths(16, 512), metavar="A:B")
    group.add_argument(
        "--max-tokens", type=int, default=0, metavar="N", help="that clients allow (default: what comes)"
    )
    group.add_argument(
        "--burst", type=float, default=1.0, metavar="F", help="rate in a tenth of the time, over the mean"
    )
    group.add_argument("--burst-period", type=float, default=10.0, metavar="S")
    group.add_argument("--groups", type=int, default=0, metavar="N", help="shared prefixes, some far more popular")
    group.add_argument("--prefix-tokens", type=lengths, default=Lengths(512, 2048), metavar="A:B")
    group.add_argument("--turns", type=int, default=1, metavar="N", help="of a session, each repeating all before it")
    group.add_argument("--think", type=float, default=10.0, metavar="S", help="between turns, on average")
    group.add_argument(
        "--tenant", action="append", default=[], metavar="NAME=SHARE[:WEIGHT]", help="who asks; may be repeated"
    )
    group.add_argument("--flood", type=float, default=0.0, metavar="X", help="one more tenant, of X times the rate")
    group.add_argument("--timeout", type=float, default=600.0, metavar="S", help="deadline of each request")
    group.add_argument("--seed", type=int, default=0)


def lengths(text: str) -> Lengths:
    """`A` or `A:B`."""
    low, _, high = text.partition(":")
    found = Lengths(int(low), int(high or low))
    if not 1 <= found.low <= found.high:
        raise argparse.ArgumentTypeError(f"{text}: give A:B with 1 <= A <= B")
    return found


def run(args: argparse.Namespace) -> int:
    cost = read_cost_model(args.cost_model)
    shares, weights = _tenants(args.tenant)
    if args.write_trace:
        write_trace(args.write_trace, _arrivals(args, cost, shares))
        return 0
    objective = Objective(args.ttft_objective, args.token_objective)
    worlds: dict[str, World] = {}
    summaries: dict[str, Summary] = {}
    rates: dict[str, float] = {}
    for config in _router_configs(args, weights):
        name = config.policy.value
        started = time.perf_counter()
        worlds[name] = _simulate(args, cost, config, _arrivals(args, cost, shares))
        rates[name] = len(worlds[name].records) / (time.perf_counter() - started)
        summaries[name] = summarise(worlds[name], objective, weights)
    _show(args, cost, summaries, rates)
    if args.plot:
        from deployments.simulation.plots import plot  # only here is matplotlib looked for

        plot(worlds, args.plot)
    return 0


def _tenants(texts: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of the requests and weights, by name."""
    shares, weights = {}, {}
    for text in texts:
        name, _, numbers = text.partition("=")
        share, _, weight = numbers.partition(":")
        try:
            shares[name], weights[name] = float(share or 1.0), float(weight or 1.0)
        except ValueError:
            raise ConfigError("tenant", text, "give NAME=SHARE or NAME=SHARE:WEIGHT") from None
    return shares, weights


def _router_configs(args: argparse.Namespace, weights: dict[str, float]) -> list[RouterConfig]:
    """The configured router, once for each policy that is to be compared."""
    policies = [f"router.policy={name}" for name in args.policy.split(",") if name]
    shards = [] if args.shards is None else [f"router.shards={args.shards}"]
    configs = [
        read_config(file=args.config, overrides=[*args.overrides, *shards, *policy]).router
        for policy in ([[name] for name in policies] or [[]])
    ]
    tenants = {name: TenantConfig(weight=weight) for name, weight in weights.items()}
    return [msgspec.structs.replace(config, tenants={**config.tenants, **tenants}) for config in configs]


def _arrivals(args: argparse.Namespace, cost: CostModel, shares: dict[str, float]) -> Iterator[Arrival]:
    if args.trace:
        traces = heapq.merge(*map(read_trace, args.trace), key=lambda arrival: arrival.at)
        return itertools.islice(traces, args.requests)
    workload = Workload(
        rate=1.0,
        prompt=args.prompt_tokens,
        output=args.output_tokens,
        max_tokens=args.max_tokens,
        burst=args.burst,
        burst_period_s=args.burst_period,
        num_groups=args.groups,
        prefix=args.prefix_tokens,
        tenants=shares,
        turns=args.turns,
        think_s=args.think,
    )
    rate = args.rate or args.load * workload.capacity(cost) * args.replicas
    workloads = [msgspec.structs.replace(workload, rate=rate)]
    if args.flood:
        workloads.append(msgspec.structs.replace(workload, rate=args.flood * rate, tenants={"flood": 1.0}))
    return itertools.islice(merge(workloads, args.seed), args.requests)


def _simulate(args: argparse.Namespace, cost: CostModel, config: RouterConfig, arrivals: Iterator[Arrival]) -> World:
    setup = Setup(
        cost=cost,
        router=config,
        num_replicas=args.replicas,
        num_gateways=args.gateways,
        faults=tuple(parse_fault(text) for text in args.fault),
        timeout_s=args.timeout,
        report_every_s=args.report_every,
        binds_early=args.early_binding,
        seed=args.seed,
    )
    world = World(setup, arrivals)
    gc.freeze()  # else each full collection looks through the KV blocks of all replicas
    with counting_bar() as progress:
        bar = progress.add_task(config.policy.value, total=args.requests)
        world.run(lambda num_arrived: progress.update(bar, completed=num_arrived))
    return world


def _show(args: argparse.Namespace, cost: CostModel, summaries: dict[str, Summary], rates: dict[str, float]) -> None:
    if args.json:
        for name, summary in summaries.items():
            print(json.dumps({"policy": name, "cost_model": cost.name, **msgspec.to_builtins(summary)}))
        return
    console = Console()
    kind = "measured" if cost.is_measured else "guessed"
    console.print(f"{args.replicas} replicas of {cost.name} ({kind}: {cost.source})")
    table = Table("", *summaries)
    rows = {name: dict(_rows(summary)) for name, summary in summaries.items()}
    for key in next(iter(rows.values())):
        table.add_row(key, *(rows[name][key] for name in summaries))
    table.add_row("simulated requests per second of ours", *(f"{rates[name]:,.0f}" for name in summaries))
    console.print(table)
    tenants = Table("tenant", "policy", "requests", "done", "TTFT p50", "p99", "tokens/s", "busy replicas")
    for name, summary in summaries.items():
        for tenant, got in summary.tenants.items():
            ttft = got.ttft_s
            counts = (f"{got.num_requests:,}", f"{got.num_done:,}")
            times = (f"{ttft.p50:.3f} s", f"{ttft.p99:.3f} s")
            tenants.add_row(tenant, name, *counts, *times, f"{got.tokens_per_s:,.0f}", f"{got.replicas:.2f}")
    if any(len(summary.tenants) > 1 for summary in summaries.values()):
        console.print(tenants)


def _rows(summary: Summary) -> Iterator[tuple[str, str]]:
    """The table of one run."""
    yield "requests: done, refused, late", f"{summary.num_done:,}, {summary.num_refused:,}, {summary.num_late:,}"
    yield "migrated, moved between shards", f"{summary.num_migrated:,}, {summary.num_moved:,}"
    for name, times in (("TTFT", summary.ttft_s), ("queue", summary.queue_s)):
        yield f"{name} p50 / p90 / p99", f"{times.p50:.3f} / {times.p90:.3f} / {times.p99:.3f} s"
    times = summary.per_token_s
    yield "per token p50 / p99", f"{1e3 * times.p50:.1f} / {1e3 * times.p99:.1f} ms"
    yield "output tokens/s, requests/s", f"{summary.output_tokens_per_s:,.0f}, {summary.requests_per_s:,.1f}"
    yield "goodput", f"{100 * summary.goodput:.1f} %, {summary.goodput_per_s:,.1f}/s"
    yield "prefix hit rate", f"{100 * summary.hit_rate:.1f} %"
    yield "replicas computing, busiest over mean", f"{100 * summary.busy:.0f} %, {summary.imbalance:.2f}"
    yield "spread of what replicas hold", f"{100 * summary.spread:.1f} % of the places"
    yield "fairness", f"{summary.fairness:.3f}"
    yield "preemptions", f"{summary.num_preemptions:,}"
    yield "simulated time", f"{summary.seconds:,.1f} s"
