"""`manta preflight`: starts the ranks of a replica without its weights, lets them check each other, and shows it all.

The same that every start of a replica of many ranks does before it loads.
"""

import argparse
import logging
from collections.abc import Iterable

import msgspec
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table

from cluster.config import MantaConfig, ModelConfig
from deployments.commands.config import add_config_arguments, config_from
from deployments.commands.start_progress import StartProgress
from engine.errors import ConfigError
from parallel.cores import read_host_cores, share_cores
from parallel.devices import size_text
from parallel.layout import RankLayout
from parallel.preflight import Preflight


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    """0 when the ranks may serve, even where they are slow; what must not serve together is an error."""
    console = Console(stderr=args.json)
    logging.getLogger("engine.rank_preflight").setLevel(logging.ERROR)  # what it warns of is in the report
    for model in _models(config_from(args)):
        found = _rehearse(model, StartProgress(console))
        if args.json:
            print(msgspec.json.encode(found).decode())
        else:
            show(console, found)
    return 0


def _models(config: MantaConfig) -> Iterable[ModelConfig]:
    models = [model for model in config.models if not model.is_chain]
    if not models:
        raise ConfigError("model", config.models[0].model, "it has no ranks: name another model")
    return models


def _rehearse(model: ModelConfig, progress: StartProgress) -> Preflight:
    from engine.phases import Phases
    from engine.rank_spawn import on_this_host
    from engine.rank_startup import rehearse_ranks  # imports torch

    layout = RankLayout(model.tensor_parallel, model.pipeline_parallel)
    cores = share_cores(read_host_cores(), layout.world_size)
    phases = Phases(lambda phase, seconds: progress.show({model.served_name: {phase: seconds}}))
    spawner = on_this_host(layout, cores, layout.world_size)
    return rehearse_ranks(model.location, model.engine, layout, spawner, model.rank_timeout_s, phases)


def show(console: Console, found: Preflight) -> None:
    """Every rank, every link, and what is odd."""
    first = found.facts[0]
    console.print(
        f"Manta {first.manta}, torch {first.torch}, transformers {first.transformers}, Python {first.python}; "
        f"{first.device_name}; {first.dtype}, weights {first.weights}",
        highlight=False,
    )
    console.print(_ranks(found))
    if any(speed.links for speed in found.speeds):
        console.print(_links(found))
    for oddity in found.oddities:
        console.print(f"[yellow]{oddity}[/]", highlight=False)
    console.print(f"[{'yellow' if found.oddities else 'green'}]{found}[/]", highlight=False)


def _table(*headings: str) -> Table:
    table = Table(box=HORIZONTALS, show_edge=False, pad_edge=False, padding=(0, 1))
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "host" else "right", no_wrap=True)
    return table


def _ranks(found: Preflight) -> Table:
    table = _table(
        "rank", "host", "stage", "part", "free", "clock\nms", "driver\nus", "work\nms", "4 KiB\nus", "MiB\nus"
    )
    for rank, (fact, reach, speed) in enumerate(zip(found.facts, found.reaches, found.speeds, strict=True)):
        position = found.layout.position(rank)
        place = [str(rank), fact.host, str(position.pp_rank), str(position.tp_rank), size_text(fact.free_bytes)]
        times = [
            f"{reach.clock_offset_s * 1e3:+,.1f}",
            f"{reach.round_trip_s * 1e6:,.0f}",
            f"{speed.work_s * 1e3:,.0f}",
        ]
        sums = [f"{seconds * 1e6:,.0f}" if seconds else "" for seconds in (speed.sum_small_s, speed.sum_large_s)]
        table.add_row(*place, *times, *sums)
    table.caption_justify = "left"
    table.caption = (
        "clock: ahead of the driver's; driver: there and back; work: the same arithmetic; "
        "4 KiB, MiB: a sum of so much in its stage"
    )
    return table


def _links(found: Preflight) -> Table:
    table = _table("ranks", "one way, us", "MB/s")
    for rank, speed in enumerate(found.speeds):
        for link in speed.links:
            table.add_row(f"{rank} - {link.peer}", f"{link.latency_s * 1e6:,.0f}", f"{link.bytes_per_s / 1e6:,.0f}")
    return table
