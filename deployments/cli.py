"""The `manta` command: one file a subcommand, put together here."""

import argparse
import sys

from deployments import bench_command, chat_client, config_command, doctor, serve_command, status_command
from engine.errors import MantaError

_COMMANDS = {
    "serve": (serve_command, "serve a model over HTTP until Ctrl-C"),
    "status": (status_command, "show router shards, replicas, ranks, load and KV use of a running app"),
    "chat": (chat_client, "talk to a served model in the terminal"),
    "bench": (bench_command, "put load on a server and show what its clients saw"),
    "config": (config_command, "check a configuration and print it with its derived values"),
    "doctor": (doctor, "check this machine and say what to do"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; an error that names its remedy is printed without a traceback."""
    parser = argparse.ArgumentParser(prog="manta", description="Serves large language models on a Ray cluster.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, help_text) in _COMMANDS.items():
        subparser = commands.add_parser(name, help=help_text, description=help_text)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except MantaError as error:
        print(f"manta: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
