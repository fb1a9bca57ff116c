"""The `manta` command: one file a subcommand, put together here; only the chosen one is imported."""

import argparse
import importlib
import os
import sys
from pathlib import Path

from engine.errors import MantaError

_COMMANDS = {
    "serve": ("deployments.serve_command", "serve a model over HTTP until Ctrl-C"),
    "status": ("deployments.status_command", "show router shards, replicas, ranks, load and KV use of a running app"),
    "chat": ("deployments.chat_client", "talk to a served model in the terminal"),
    "bench": ("deployments.bench_command", "put load on a server and show what its clients saw"),
    "config": ("deployments.config_command", "check a configuration and print it with its derived values"),
    "doctor": ("deployments.doctor", "check this machine and say what to do"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; an error that names its remedy is printed without a traceback."""
    words = sys.argv[1:] if argv is None else argv
    use_ray_token()
    parser = argparse.ArgumentParser(prog="manta", description="Serves large language models on a Ray cluster.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module_name, help_text) in _COMMANDS.items():
        subparser = commands.add_parser(name, help=help_text, description=help_text)
        if words[:1] == [name]:
            module = importlib.import_module(module_name)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    args = parser.parse_args(words)
    try:
        return int(args.run(args))
    except MantaError as error:
        print(f"manta: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def use_ray_token() -> None:
    """Let this process join the clusters that `manta serve` starts, which ask for this user's token.

    Ray writes the token when it first starts a cluster, but reads whether to use it from the environment alone, and
    only while it is imported.
    """
    if (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


if __name__ == "__main__":
    sys.exit(main())
