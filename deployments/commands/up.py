"""`manta up FILE`: a Ray cluster by `ray up`, waited for until every host has joined; with `--deploy`, an app on it.

Manta is installed on the hosts by the file's set-up commands.
"""

import argparse

from rich.console import Console
from rich.markup import escape

from deployments.commands.cluster_file import read_cluster_file
from deployments.commands.ray_launcher import launch, make_token, run_on_head
from deployments.commands.start_progress import StartProgress

MANTA = "~/manta/.venv/bin/manta"  #: where the cluster files of this repository put it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="cluster file of `ray up`, as ray_config.yaml")
    parser.add_argument("--deploy", metavar="WORDS", help="then `manta deploy WORDS` on the head: 'demo --replicas 2'")
    parser.add_argument("--no-restart", action="store_true", help="a cluster that runs takes the file up and runs on")
    parser.add_argument("--manta", default=MANTA, metavar="COMMAND", help=f"manta on the hosts (default: {MANTA})")
    parser.add_argument("--timeout", type=float, default=1800.0, metavar="S", help="wait so long for the workers")


def run(args: argparse.Namespace) -> int:
    progress = StartProgress(Console(stderr=True, highlight=False))
    cluster = read_cluster_file(args.file)

    def show(line: str) -> None:
        progress.say(escape(line))

    if make_token():
        progress.say("made a token in ~/.ray/auth_token: who has it may use the cluster")
    progress.say(f"ray up: {cluster.name}, {cluster.num_hosts} hosts")
    launch(cluster, ["up", "-y", "--no-config-cache", *(["--no-restart"] if args.no_restart else [])], show)
    progress.say("the head is up; the others join")
    waiting = f"{args.manta} hosts --wait {cluster.num_hosts} --timeout {args.timeout:g}"
    run_on_head(cluster, waiting, show)
    if args.deploy is not None:
        progress.say("deploying")
        run_on_head(cluster, f"{args.manta} deploy {args.deploy}", show)
    progress.say("up")
    return 0
