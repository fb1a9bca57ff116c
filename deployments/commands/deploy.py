"""`manta deploy`: gives a running app a new configuration, replica by replica, while it serves.

Serve starts each new replica before it stops an old one; what is stopped takes its leave like one that is drained.
"""

import argparse
import time
from typing import Any

from ray import serve
from ray.serve import RunTarget
from ray.serve.schema import ApplicationStatus
from rich.console import Console

from cluster.config import MantaConfig
from deployments.app import APP_NAME, build_app
from deployments.commands.config import add_config_arguments, config_from
from deployments.commands.joined_cluster import joined_cluster
from deployments.commands.local_cluster import start_serve
from deployments.commands.placement import gateway_urls, require_reachable
from deployments.commands.room import RoomWatch
from deployments.commands.serving_session import StartFailed, raise_failure
from deployments.commands.start_progress import StartProgress

POLL_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--address", default="auto", help="the Ray cluster (default: the one running here)")
    parser.add_argument("--timeout", type=float, default=1800.0, metavar="S", help="wait no longer for it to be done")


def run(args: argparse.Namespace) -> int:
    config = config_from(args)
    progress = StartProgress(Console(stderr=True, highlight=False))
    with joined_cluster(args.address):
        require_reachable(config)
        start_serve(config)
        serve.run_many([RunTarget(build_app(config), name=APP_NAME)], wait_for_applications_running=False)
        progress.say("deploying")
        _wait_until_done(config, progress, args.timeout)
        progress.say(f"answers on {', '.join(gateway_urls(config))}")
        progress.say("deployed; what the old replicas still run goes on to its end")
    return 0


def _wait_until_done(config: MantaConfig, progress: StartProgress, timeout_s: float) -> None:
    """Until the new replicas serve, and only they."""
    until, shown = time.monotonic() + timeout_s, ""
    room = RoomWatch(config, progress)
    while True:
        app: Any = serve.status().applications[APP_NAME]
        states = {
            name: ", ".join(f"{count} {state.lower()}" for state, count in deployment.replica_states.items())
            for name, deployment in app.deployments.items()
        }
        text = "; ".join(f"{name}: {state}" for name, state in states.items())
        if text != shown:
            shown = text
            progress.say(text)
        if app.status == ApplicationStatus.RUNNING:
            return
        raise_failure()
        room.look()
        if time.monotonic() > until:
            raise StartFailed(f"not done after {timeout_s:.0f} s; {room.blame('it goes on without this command')}")
        time.sleep(POLL_S)
