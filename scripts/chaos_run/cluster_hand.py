"""The nemesis's hand on a running Ray cluster: who is there, and the faults that need Ray. A process of its own.

Pids come from Ray's table of actors (`ray._private.state.actors`: the public state API needs the dashboard, which
`manta serve` leaves out), and whether a process does its work from the router shards, as `manta status` tells it.
Signals are sent to pids, so all processes must be on this host.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from typing import Any

import psutil

from deployments.commands.ray_environment import prepare_to_join
from engine.errors import MantaError
from scripts.chaos_run.nemesis import ClusterView, Process

ANSWER_S = 60.0
SILENT_S = 1.0  #: a replica that has reported nothing for so long is not at work


class NoHand(MantaError):
    """Faults cannot be injected here; `why` says what is missing."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"cannot inject faults: {self.why}; run without them with --faults 0"


class ClusterHand:
    """Joins the cluster at `address` in a process of its own, so that Ray's threads do not delay the clients."""

    def __init__(self, address: str, app: str) -> None:
        prepare_to_join(address)  # read by Ray when the new process imports it
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve_commands, args=(theirs, address, app), daemon=True)
        self._process.start()
        theirs.close()
        self._ask("join")

    def view(self) -> ClusterView:
        """Who is at work now."""
        found: ClusterView = self._ask("view")
        return found

    def migrations(self) -> int | None:
        """How often requests went on elsewhere, as the router shards have counted since they started."""
        found: int | None = self._ask("migrations")
        return found

    def drain(self, replica: str) -> None:
        self._ask("drain", replica)

    def redeploy(self, config_file: str) -> None:
        """Deploy the same app again: every process is replaced, a few at a time."""
        self._ask("redeploy", config_file)

    def close(self) -> None:
        with suppress(OSError):
            self._ours.send(None)
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()

    def _ask(self, what: str, *args: str) -> Any:
        try:
            self._ours.send((what, args))
            if not self._ours.poll(ANSWER_S):
                raise NoHand(f"no answer to {what!r} within {ANSWER_S:.0f} s")
            answer = self._ours.recv()
        except (OSError, EOFError):
            raise NoHand("the process that joined the Ray cluster has ended") from None
        if isinstance(answer, Exception):
            raise NoHand(f"{what}: {answer}")
        return answer


def _serve_commands(connection: Connection, address: str, app: str) -> None:
    """The life of the process: one answer per command; an exception is an answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the main process
    from deployments.app import APP_NAME

    hand = _Hand(address, app) if app == APP_NAME else _PlainHand(address, app)
    while True:
        try:
            command = connection.recv()
        except EOFError:
            return
        if command is None:
            return
        what, args = command
        try:
            answer = getattr(hand, what)(*args)
        except Exception as error:  # told to the main process, which knows what to do
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        connection.send(answer)


class _Hand:
    """Inside the process that has joined Ray."""

    def __init__(self, address: str, app: str) -> None:
        self._address, self._app = address, app
        self._joined = ExitStack()  #: to the end of the process
        self._migrations: dict[int, int] = {}
        self._migrations_of_dead_shards = 0

    def join(self) -> None:
        import ray

        from deployments.commands.joined_cluster import joined_cluster

        self._joined.enter_context(joined_cluster(self._address))
        here = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        if len(here) != 1 or not _is_this_host(next(iter(here))):
            raise RuntimeError(f"the cluster's processes are not all on this host (nodes {sorted(here)})")

    def migrations(self) -> int | None:
        self._count_migrations(self._status())
        return sum(self._migrations.values()) + self._migrations_of_dead_shards

    def _count_migrations(self, status: Mapping[str, Any]) -> None:
        """A shard that starts anew counts anew."""
        for shard in status.get("shards", ()):
            number = int(shard["shard"])
            count = sum(queue["migrations"] for queue in shard["queues"].values())
            if count < self._migrations.get(number, 0):
                self._migrations_of_dead_shards += self._migrations[number]
            self._migrations[number] = count

    def view(self) -> ClusterView:
        status, actors = self._status(), _living_actors()
        self._count_migrations(status)
        at_work = [
            replica
            for replica in status["replicas"]
            if replica["report_age_s"] < SILENT_S and not replica.get("is_draining", False)
        ]
        reporting = {replica["replica_id"] for replica in at_work}
        ranks = [
            Process(f"{replica['replica_id']}.{rank}", pid)
            for replica in at_work
            for rank, pid in enumerate(replica["engine"]["rank_pids"])
        ]
        connected = set(status["gateways"])
        replicas, gateways, others = [], [], dict[str, list[Process]]()
        for name, pid in actors.items():
            process = Process(name.rpartition("#")[2], pid)
            if name.startswith(f"SERVE_REPLICA::{self._app}#gateway#"):
                gateways += [process] if process.name in connected else []
            elif name.startswith(f"SERVE_REPLICA::{self._app}#"):
                replicas += [process] if process.name in reporting else []
            else:
                others.setdefault(_family(name), []).append(process)
        return ClusterView(
            replicas, gateways, others.get("shard", []), others.get("controller", []), others.get("proxy", []),
            ranks, is_deploying=self._is_deploying(),
        )  # fmt: skip

    def drain(self, replica: str) -> None:
        import ray

        from deployments.commands.local_cluster import find_routers

        if not any(ray.get([shard.drain.remote(replica) for shard in find_routers()], timeout=ANSWER_S)):
            raise RuntimeError(f"no router shard knows the replica {replica}")

    def redeploy(self, config_file: str) -> None:
        import logging

        from ray import serve
        from ray.serve import RunTarget

        from cluster.config_reader import read_config
        from deployments.app import build_app

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        app = build_app(read_config(file=config_file))
        serve.run_many([RunTarget(app, name=self._app)], wait_for_applications_running=False)

    def _is_deploying(self) -> bool:
        """As far as the controller can say; without one nothing is being deployed."""
        import ray
        from ray import serve

        try:
            app = serve.status().applications.get(self._app)
        except (ray.exceptions.RayError, ValueError):
            return False
        return app is not None and app.status == "DEPLOYING"

    def _status(self) -> Mapping[str, Any]:
        from deployments.commands.local_cluster import router_status

        return router_status(2.0) or {"replicas": [], "gateways": []}


class _PlainHand(_Hand):
    """The same for the baseline, of which Ray Serve's controller alone knows who works."""

    def migrations(self) -> None:
        """There are none."""

    def view(self) -> ClusterView:
        from ray import serve

        app = serve.status().applications[self._app]
        num_running = app.deployments["Engine"].replica_states.get("RUNNING", 0)
        prefix = f"SERVE_REPLICA::{self._app}#Engine#"
        engines = [Process(name.rpartition("#")[2], pid) for name, pid in _living_actors().items() if prefix in name]
        return ClusterView(engines[:num_running], [Process("ingress", 0)], [Process("none", 0)])


def _living_actors() -> dict[str, int]:
    """Pid by name, of every actor that lives, the oldest first."""
    import ray._private.state

    table: Mapping[str, Any] = ray._private.state.actors()
    return {
        actor["Name"]: actor["Pid"]
        for actor in sorted(table.values(), key=lambda actor: actor["StartTime"])
        if actor["State"] == "ALIVE" and actor["Name"] and psutil.pid_exists(actor["Pid"])
    }


def _family(name: str) -> str:
    if name.startswith("manta-router-"):
        return "shard"
    if name.startswith("SERVE_CONTROLLER"):
        return "controller"
    return "proxy" if "PROXY" in name else "other"


def _is_this_host(address: str) -> bool:
    own = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
    return address in own


def send(pid: int, number: signal.Signals) -> bool:
    """Whether the process was there to get the signal."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        print(f"chaos: no permission to signal pid {pid}", file=sys.stderr)
        return False
    return True
