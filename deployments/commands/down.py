"""`manta down FILE`: takes the whole cluster down.

`ray down` does that in a cloud. Of machines that are named in the file it tries to stop the head alone, with whatever
`ray` is found there, so here Ray is stopped on each of them: the head first, whose autoscaler would start the others
again.
"""

import argparse
import subprocess
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.markup import escape

from deployments.commands.cluster_file import ClusterFile, read_cluster_file
from deployments.commands.ray_launcher import LaunchFailed, launch
from deployments.commands.start_progress import StartProgress

STOP_TIMEOUT_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="cluster file that it was started with")


def run(args: argparse.Namespace) -> int:
    progress = StartProgress(Console(stderr=True, highlight=False))
    cluster = read_cluster_file(args.file)

    def show(line: str) -> None:
        progress.say(escape(line))

    progress.say(f"ray down: {cluster.name}")
    failed = 0
    try:
        launch(cluster, ["down", "-y"], show)
    except LaunchFailed as error:
        if not cluster.is_local:
            raise
        show(str(error))  # all hosts are gone through below
    if cluster.is_local:
        (head, *workers) = cluster.stops
        show(f"stopping Ray on {len(workers) + 1} hosts")
        with ThreadPoolExecutor(max_workers=16) as pool:
            reasons = [stop_host(cluster, *head), *pool.map(lambda worker: stop_host(cluster, *worker), workers)]
        for (host, _), why in zip(cluster.stops, reasons, strict=True):
            show(f"{host}: {why or 'stopped'}")
            failed += bool(why)
    progress.say(f"not down: {failed} hosts, see above" if failed else "down")
    return int(failed > 0)


def stop_host(cluster: ClusterFile, host: str, command: str) -> str:
    """Stop Ray on a host; why it could not be, or nothing."""
    try:
        done = subprocess.run(
            cluster.ssh(host, command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STOP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {STOP_TIMEOUT_S:.0f} s"
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return f"not stopped, {lines[-1] if lines else f'ssh ended with {done.returncode}'}"
    return ""
