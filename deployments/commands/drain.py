"""`manta drain REPLICA`: a replica takes its leave without anybody noticing, and Serve starts another in its place."""

import argparse
import time
from collections.abc import Iterable
from typing import Any

import ray
from rich.console import Console

from deployments.commands.joined_cluster import app_status, joined_cluster
from deployments.commands.local_cluster import find_routers
from engine.errors import MantaError

POLL_S = 0.3
NUM_ABSENCES = 3  #: a replica that moves from shard to shard may be seen nowhere for a moment


class NoSuchReplica(MantaError):
    """`name` is no replica's id, nor the beginning of just one."""

    def __init__(self, name: str, found: list[str]) -> None:
        super().__init__(name, found)
        self.name, self.found = name, found

    def __str__(self) -> str:
        which = "several replicas begin so" if self.found else "no replica has this id; `manta status` lists them"
        return f"drain {self.name!r}: {which}{': ' if self.found else ''}{', '.join(self.found)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("replica", metavar="REPLICA", help="its id, or the beginning of it, as `manta status` shows it")
    parser.add_argument("--address", default="auto", help="the Ray cluster (default: the one running here)")
    parser.add_argument("--timeout", type=float, default=900.0, metavar="S", help="wait no longer for it to be gone")


def run(args: argparse.Namespace) -> int:
    console = Console(stderr=True, highlight=False)
    with joined_cluster(args.address):
        replica_id = find_replica(args.replica, app_status()["replicas"])
        if not any(ray.get([shard.drain.remote(replica_id) for shard in find_routers()])):
            raise NoSuchReplica(args.replica, [])
        return 0 if _wait_until_gone(replica_id, args.timeout, console) else 1


def find_replica(name: str, replicas: Iterable[dict[str, Any]]) -> str:
    """The id that is `name` or the only one to begin with it."""
    found = sorted(replica["replica_id"] for replica in replicas if replica["replica_id"].startswith(name))
    if name in found:
        return name
    if len(found) != 1:
        raise NoSuchReplica(name, found)
    return str(found[0])


def _wait_until_gone(replica_id: str, timeout_s: float, console: Console) -> bool:
    began, absences, shown = time.monotonic(), 0, -1
    while absences < NUM_ABSENCES:
        passed_s = time.monotonic() - began
        if passed_s > timeout_s:
            console.print(f"{replica_id} still drains after {timeout_s:.0f} s")
            return False
        replica = next((known for known in app_status()["replicas"] if known["replica_id"] == replica_id), None)
        absences = absences + 1 if replica is None else 0
        load = (replica or {}).get("load")
        if load is not None and (left := load["num_running"] + load["num_waiting"]) != shown:
            shown = left
            console.print(f"[dim]{passed_s:6.1f} s[/dim]  {replica_id} drains: {left} requests left")
        time.sleep(POLL_S)
    console.print(f"[dim]{time.monotonic() - began:6.1f} s[/dim]  {replica_id} is gone")
    return True
