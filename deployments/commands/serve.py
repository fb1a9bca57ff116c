"""`manta serve`: its arguments; `deployments.commands.serving_session` does the work."""

import argparse
import os

from deployments.commands.config import add_config_arguments, config_from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--address", help="a running Ray cluster to join (default: start one on this machine)")
    parser.add_argument("--start-timeout", type=float, default=1800.0, metavar="S", help="give up after S seconds")


def run(args: argparse.Namespace) -> int:
    config = config_from(args)
    if args.address is None:
        # Ray reads this when it is imported: off, its nodes use loopback addresses and nobody outside reaches them
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from deployments.commands.serving_session import serve_until_stopped

    return serve_until_stopped(config, args.address, args.start_timeout)
