"""`manta status`: what the router shards of a running app know, as a table or as JSON."""

import argparse
import json
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from deployments.commands.joined_cluster import app_status, joined_cluster

SILENT_S = 1.0  #: a replica reports ten times a second


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", default="auto", help="the Ray cluster (default: the one running here)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    with joined_cluster(args.address):
        status = app_status()
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        _show(status, Console())
    return 0


def _show(status: dict[str, Any], console: Console) -> None:
    shards = Table(
        "shard", "queued requests", "queued tokens", "granted", "refused", "condemned", "gateways",
        title="router", box=box.SIMPLE_HEAD,
    )  # fmt: skip
    for shard in status["shards"]:
        queues = shard["queues"].values()
        counts = [sum(queue[key] for queue in queues) for key in ("requests", "tokens")]
        counts += [shard[key] for key in ("granted", "refused", "condemned")]
        shards.add_row(str(shard["shard"]), *map(str, counts), str(len(shard["gateways"])))
    console.print(shards)
    tenants = Table("shard", "model", "tenant", "queued requests", title="who waits", box=box.SIMPLE_HEAD)
    for shard in status["shards"]:
        for model, queue in shard["queues"].items():
            for tenant, number in queue["tenants"].items():
                tenants.add_row(str(shard["shard"]), model, tenant, str(number))
    if tenants.row_count:
        console.print(tenants)
    console.print(_replica_table(status["replicas"]))


def _replica_table(replicas: list[dict[str, Any]]) -> Table:
    """Fits into 80 columns for one host; which host is told where there are several."""
    table = Table(Column("replica", no_wrap=True), title="replicas", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    several = len({replica["host"] for replica in replicas}) > 1
    names = ["model", "shard", *["host"] * several, "rank: pid", "state", "running", "waiting", "KV use", "steps"]
    for name in names:
        table.add_column(name, no_wrap=name in ("host", "rank: pid"))
    for replica in replicas:
        table.add_row(*_replica_row(replica, several))
    return table


def _replica_row(replica: dict[str, Any], with_host: bool) -> list[str]:
    load, num_blocks = replica["load"] or {}, replica["engine"]["num_blocks"]
    free = load.get("free_blocks")
    return [
        replica["replica_id"],
        replica["model"],
        str(replica["shard"]),
        *[replica["host"]] * with_host,
        "\n".join(_ranks(replica)),
        _state(replica),
        str(load.get("num_running", "-")),
        str(load.get("num_waiting", "-")),
        "-" if free is None else f"{100 * (num_blocks - free) / num_blocks:.0f} %",
        str(load.get("step", "-")),
    ]


def _ranks(replica: dict[str, Any]) -> list[str]:
    """A line for each host that they are on, which is named where there are several."""
    hosts = replica["rank_hosts"] or [replica["host"]] * len(replica["pids"])
    lines: dict[str, list[str]] = {}
    for rank, (host, pid) in enumerate(zip(hosts, replica["pids"], strict=True)):
        lines.setdefault(host, []).append(f"{rank}: {pid}")
    return [", ".join(ranks) + f" on {host}" * (len(lines) > 1) for host, ranks in lines.items()]


def _state(replica: dict[str, Any]) -> str:
    """What keeps requests from it, if anything does; words of seven letters at most, to fit."""
    if replica["is_draining"]:
        return "rebuild" if replica["comes_back"] else "drains"
    if replica["report_age_s"] > SILENT_S:
        return f"silent for {replica['report_age_s']:.0f} s"
    if replica["breaker"] != "closed":
        return f"breaker {replica['breaker']}"
    num_rebuilds = replica["engine"]["num_rebuilds"]
    return f"serving\nrebuilt {num_rebuilds}x" if num_rebuilds else "serving"
