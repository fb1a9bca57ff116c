"""`manta status`: what the router shard of a running app knows, as a table or as JSON."""

import argparse
import json
import logging
import os
import socket
import sys
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from deployments.commands.local_cluster import router_status
from deployments.router_actor import NAMESPACE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", default="auto", help="the Ray cluster (default: the one running here)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not _answers(args.address):
        print(f"manta: nothing listens at {args.address!r}; is `manta serve` running?", file=sys.stderr)
        return 1
    try:
        ray.init(address=args.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError) as error:
        print(f"manta: no Ray cluster at {args.address!r} ({error}); is `manta serve` running?", file=sys.stderr)
        return 1
    try:
        status = router_status()
    finally:
        ray.shutdown()
    if status is None:
        print("manta: the cluster runs, but no Manta app is on it; start one with `manta serve`", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(status, indent=2))
    else:
        _show(status, Console())
    return 0


def _answers(address: str, timeout_s: float = 3.0) -> bool:
    """Whether something listens at `host:port`: Ray would try for minutes. Other forms are for Ray to judge."""
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdecimal():
        return True
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout_s):
            return True
    except OSError:
        return False


def _show(status: dict[str, Any], console: Console) -> None:
    shards = Table("shard", "queued requests", "queued tokens", "granted", "refused", "gateways", title="router")
    queued = status["queues"].values()
    shards.add_row(
        "0",
        str(sum(queue["requests"] for queue in queued)),
        str(sum(queue["tokens"] for queue in queued)),
        str(status["granted"]),
        str(status["refused"]),
        str(len(status["gateways"])),
    )
    console.print(shards)
    replicas = Table("replica", "model", "rank: pid", "running", "waiting", "KV use", "steps", title="replicas")
    for replica in status["replicas"]:
        replicas.add_row(*_replica_row(replica))
    console.print(replicas)


def _replica_row(replica: dict[str, Any]) -> list[str]:
    load, num_blocks = replica["load"] or {}, replica["engine"]["num_blocks"]
    free = load.get("free_blocks")
    return [
        replica["replica_id"],
        replica["model"],
        ", ".join(f"{rank}: {pid}" for rank, pid in enumerate(replica["pids"])),
        str(load.get("num_running", "-")),
        str(load.get("num_waiting", "-")),
        "-" if free is None else f"{100 * (num_blocks - free) / num_blocks:.0f} %",
        str(load.get("step", "-")),
    ]
