"""`manta hosts`: the hosts of the Ray cluster and what runs on each of them."""

import argparse
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from deployments.commands.joined_cluster import NotServing, joined_cluster
from deployments.commands.local_cluster import router_status
from deployments.commands.placement import place_replicas
from deployments.commands.start_progress import StartProgress

POLL_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", default="auto", help="the Ray cluster (default: the one running here)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--wait", type=int, default=0, metavar="N", help="until N hosts have joined")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="wait no longer")


def run(args: argparse.Namespace) -> int:
    with joined_cluster(args.address):
        if args.wait:
            _wait(args.wait, args.timeout, StartProgress(Console(stderr=True, highlight=False)))
        hosts = read_hosts()
    if args.json:
        print(json.dumps(hosts, indent=2))
    elif not args.wait:
        _show(hosts, Console())
    return 0


def read_hosts() -> list[dict[str, Any]]:
    """Each host that Ray knows, the dead ones too, with the Serve replicas on it by deployment.

    `ranks`: of the replicas whose ranks are on several hosts, by replica id.
    """
    placed = place_replicas()
    ranks = ranks_by_host((router_status() or {}).get("replicas", []))
    return [
        {
            "address": node["NodeManagerAddress"],
            "node_id": node["NodeID"],
            "is_alive": node["Alive"],
            "cpus": node["Resources"].get("CPU", 0),
            "gpus": node["Resources"].get("GPU", 0),
            "replicas": placed.get(node["NodeID"], {}),
            "ranks": ranks.get(node["NodeManagerAddress"], {}) if node["Alive"] else {},
        }
        for node in sorted(ray.nodes(), key=lambda node: (not node["Alive"], node["NodeManagerAddress"]))
    ]


def ranks_by_host(replicas: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """By address, then replica id."""
    found: dict[str, dict[str, list[int]]] = {}
    for replica in replicas:
        hosts = replica["rank_hosts"]
        for rank, host in enumerate(hosts if len(set(hosts)) > 1 else ()):
            found.setdefault(host, {}).setdefault(replica["replica_id"], []).append(rank)
    return found


def _wait(wanted: int, timeout_s: float, progress: StartProgress) -> None:
    seen: set[str] = set()
    until = time.monotonic() + timeout_s
    while True:
        alive = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        for node_id in alive.keys() - seen:
            seen.add(node_id)
            progress.say(f"{alive[node_id]} has joined ({len(seen)} of {wanted})")
        if len(alive) >= wanted:
            return
        if time.monotonic() > until:
            why = "the head's /tmp/ray/session_latest/logs/monitor.* tell how the others were started"
            raise NotServing(f"{len(alive)} of {wanted} hosts after {timeout_s:.0f} s; {why}")
        time.sleep(POLL_S)


def _show(hosts: list[dict[str, Any]], console: Console) -> None:
    table = Table("host", "state", "CPUs", "GPUs", "runs", "node id")
    for host in hosts:
        placed = [f"{count} {name}" for name, count in sorted(host["replicas"].items())]
        placed += [f"ranks {', '.join(map(str, ranks))} of {replica}" for replica, ranks in host["ranks"].items()]
        runs = "; ".join(placed)
        state = "alive" if host["is_alive"] else "dead"
        table.add_row(host["address"], state, f"{host['cpus']:g}", f"{host['gpus']:g}", runs or "-", host["node_id"])
    console.print(table)
