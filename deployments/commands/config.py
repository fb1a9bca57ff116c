"""`manta config`: the configuration as understood, with what follows from it."""

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec
import yaml

from cluster.config import MantaConfig
from cluster.config_reader import Settings, read_config
from parallel.cores import read_host_cores, share_cores


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `manta serve` and `manta config` share."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="local directory or hub id (default: the demo model)")
    parser.add_argument("--config", metavar="FILE", help="YAML file; see docs/configuration.md")
    parser.add_argument("--replicas", type=int, metavar="N", help="engines of the model")
    parser.add_argument("--dtype", metavar="T", help="float32, bfloat16, float16 or auto")
    parser.add_argument("--host", metavar="H", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="P", help="port to listen on (default: 8000)")
    parser.add_argument("--api-keys", metavar="FILE", help="ask for API keys: those of FILE (`manta key`)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="any setting, for example engine.block_size=16; may be repeated",
    )


def config_from(args: argparse.Namespace) -> MantaConfig:
    """File, then options, then `--set`."""
    overrides = list(args.overrides)
    if args.dtype is not None:
        overrides.insert(0, f"engine.dtype={args.dtype}")
    settings: Settings = {}
    if args.model is not None:
        settings["model"] = args.model
    if args.replicas is not None:
        settings["replicas"] = args.replicas
    gateway = {key: getattr(args, key) for key in ("host", "port") if getattr(args, key) is not None}
    if gateway:
        settings["gateway"] = gateway
    if args.api_keys is not None:
        settings["auth"] = {"api_keys": str(Path(args.api_keys).expanduser().absolute())}
    return read_config(settings, file=args.config, overrides=overrides)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    config = config_from(args)
    shown = {**msgspec.to_builtins(config), "derived": derived(config)}
    print(json.dumps(shown, indent=2) if args.json else yaml.safe_dump(shown, sort_keys=False), end="")
    return 0


def derived(config: MantaConfig) -> dict[str, Any]:
    """What follows from the settings on this machine, before anything is loaded."""
    shares = share_cores(read_host_cores(), sum(model.replicas * model.num_ranks for model in config.models))
    return {
        "url": f"http://{config.gateway.host}:{config.gateway.port}",
        "served_names": [model.served_name for model in config.models],
        "locations": [model.location for model in config.models],
        "threads_per_rank": [share.num_threads for share in shares],
    }
