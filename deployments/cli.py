"""The `manta` command: one file a subcommand, put together here; only the chosen one is imported."""

import argparse
import importlib
import sys

from deployments.commands.ray_environment import prepare_to_join
from engine.errors import MantaError

_COMMANDS = {
    "serve": ("deployments.commands.serve", "serve a model over HTTP until Ctrl-C"),
    "status": ("deployments.commands.status", "show router shards, replicas, ranks, load and KV use of a running app"),
    "drain": ("deployments.commands.drain", "take a replica out without anybody noticing"),
    "deploy": ("deployments.commands.deploy", "give a running app a new configuration while it serves"),
    "up": ("deployments.commands.up", "start a Ray cluster of several hosts from a file, and an app on it"),
    "down": ("deployments.commands.down", "take such a cluster down, all of its hosts"),
    "hosts": ("deployments.commands.hosts", "show the hosts of a cluster and what runs on each"),
    "key": ("deployments.commands.key", "make, list and revoke API keys"),
    "token": ("deployments.commands.token", "for development: make a token, and the key pair that signs it"),
    "usage": ("deployments.commands.usage", "sum what the usage ledger holds, or export it"),
    "chat": ("deployments.commands.chat_client", "talk to a served model in the terminal"),
    "bench": ("deployments.commands.bench", "put load on a server and show what its clients saw"),
    "simulate": ("deployments.commands.simulate", "run router and scheduler on simulated load, replicas and time"),
    "plan": ("deployments.commands.plan", "say on how many devices a model fits, and how fast it can be there"),
    "preflight": ("deployments.commands.preflight", "let the ranks of a replica check each other, and show it"),
    "config": ("deployments.commands.config", "check a configuration and print it with its derived values"),
    "doctor": ("deployments.commands.doctor", "check this machine and say what to do"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; an error that names its remedy is printed without a traceback."""
    words = sys.argv[1:] if argv is None else argv
    prepare_to_join(_address(words))
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


def _address(words: list[str]) -> str | None:
    """The Ray cluster that the command line names. Looked for before the parser is complete: that imports Ray."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--address")
    found: str | None = finder.parse_known_args(words)[0].address
    return found


if __name__ == "__main__":
    sys.exit(main())
