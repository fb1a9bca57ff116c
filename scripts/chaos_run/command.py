"""`scripts/chaos`: streams under faults, and a verdict.

Exit code 0: nothing was wrong; 1: something was; 2: it could not run.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import uvloop
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.config import CHAIN_MODEL
from cluster.config_reader import read_config
from cluster.text.tokenizer import Tokenizer
from deployments.app import APP_NAME
from engine.errors import MantaError
from scripts.chaos_run.campaign import Campaign, Outcome, Settings, Workload
from scripts.chaos_run.cluster_hand import ClusterHand
from scripts.chaos_run.nemesis import WEIGHTS, Kind, Nemesis
from scripts.chaos_run.report import details, failures, summary
from scripts.chaos_run.self_check import check_oracle
from scripts.chaos_run.served_app import ServedApp, free_port
from scripts.chaos_run.stream_client import StreamClient
from scripts.chaos_run.workload import ChainModel, ChainWorkload

LENGTHS = ((4, 40), (60, 160), (60, 160), (200, 400))  #: tokens of output: short, middle, long
DEADLINE_S = 60.0  #: of a request
GRACE_S = 5.0  #: over the server's own limit of a request


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--streams", type=int, default=200, metavar="N", help="at least N requests (default: 200)")
    parser.add_argument("--faults", type=int, default=30, metavar="N", help="faults, one at a time (default: 30)")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--rate", type=float, default=8.0, metavar="R", help="new requests per second (default: 8)")
    parser.add_argument("--replicas", type=int, default=4, metavar="N", help="engines (default: 4)")
    parser.add_argument("--gateways", type=int, default=2, metavar="N", help="gateways (default: 2)")
    parser.add_argument("--step", type=float, default=0.02, metavar="S", help="seconds of an engine's step")
    parser.add_argument("--edge", choices=("direct", "proxy"), default="direct", help="who accepts HTTP connections")
    parser.add_argument(
        "--kinds", metavar="K,K", help=f"only these faults, equally often: {', '.join(Kind)} (default: a mix)"
    )
    parser.add_argument("--url", metavar="URL", help="a running server of the chain engine; faults hit its processes")
    parser.add_argument("--address", default="auto", help="with --url: its Ray cluster (default: the one running here)")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the history, one JSON line per request and fault"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep what the server under test says")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=True, highlight=False)
    try:
        with ExitStack() as stack:
            return _run(args, console, stack)
    except MantaError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("chaos: interrupted", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace, console: Console, stack: ExitStack) -> int:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="manta-chaos-")))
    config_file = folder / "manta.yaml"
    url, address = args.url, args.address
    if url is None:
        config_file.write_text(yaml.safe_dump(server_config(args)))
        app = stack.enter_context(serving(config_file, args.log or folder / "server.log", console))
        url, address = app.url, app.ray_address
    hand = None
    if args.faults:
        hand = ClusterHand(address, APP_NAME)
        stack.callback(hand.close)
    settings = Settings(
        seed=args.seed, streams=args.streams, faults=args.faults, rate=args.rate, keep_going=args.keep_going,
        config_file=config_file if args.url is None else None,
    )  # fmt: skip
    weights = chosen_kinds(args, hand)
    history = stack.enter_context(args.json.open("w")) if args.json is not None else None
    outcome = uvloop.run(_campaign(settings, url, hand, weights, console, history))
    found = failures(outcome, with_gaps=bool(args.faults))
    for line in details(outcome, found):
        console.print(line, markup=False, soft_wrap=True)
    print(summary(outcome, args.seed, bool(found)))
    return 1 if found else 0


def server_config(args: argparse.Namespace) -> dict[str, Any]:
    """The app under test: several of everything, so that one may die."""
    return {
        "models": [{"model": CHAIN_MODEL, "replicas": args.replicas, "drain_s": 2.0, "chain": {"step_s": args.step}}],
        "gateway": {
            "port": free_port(), "replicas": args.gateways, "edge": args.edge, "drain_s": 5.0,
            "request_timeout_s": DEADLINE_S,
        },
        "router": {"shards": 2},
    }  # fmt: skip


@contextmanager
def serving(config_file: Path, log: Path, console: Console) -> Iterator[ServedApp]:
    """`manta serve` from here to the end of the block; complains of processes that outlive it."""
    app = ServedApp(["-m", "deployments.cli", "serve", "--config", str(config_file)], log)
    try:
        app.wait_ready(lambda line: console.print(f"server: {line}", markup=False, style="dim", soft_wrap=True))
        yield app
    finally:
        left = app.stop()
        if left:
            console.print(f"processes outlived the server and were killed: {left}")


def chosen_kinds(args: argparse.Namespace, hand: ClusterHand | None) -> dict[Kind, float]:
    """The faults to draw from: those asked for, less those for which there is nobody, or nobody to take over."""
    weights = dict(WEIGHTS)
    if args.edge == "proxy":
        weights[Kind.KILL_PROXY] = 10
    if args.kinds:
        weights = {Kind(kind): 1.0 for kind in args.kinds.split(",")}
    if hand is None:
        return weights
    view = hand.view()
    enough = {
        Kind.KILL_GATEWAY: len(view.gateways) > 1,
        Kind.KILL_SHARD: len(view.shards) > 1,
        Kind.KILL_PROXY: bool(view.proxies),
        Kind.REDEPLOY: args.url is None,
    }
    return {kind: weight for kind, weight in weights.items() if enough.get(kind, len(view.replicas) > 1)}


async def _campaign(
    settings: Settings,
    url: str,
    hand: ClusterHand | None,
    weights: dict[Kind, float],
    console: Console,
    history: TextIO | None,
) -> Outcome:
    model = read_config({"model": CHAIN_MODEL}).models[0]
    tokenizer = Tokenizer.load(Path(model.location))
    workload: Workload = ChainWorkload(settings.seed, ChainModel(tokenizer.vocab_size, tokenizer), LENGTHS)

    def client(**more: Any) -> StreamClient:
        return StreamClient(url, model.served_name, DEADLINE_S + GRACE_S, **more)

    caught = await check_oracle(workload, lambda receive: client(receive=receive))
    console.print(f"seed {settings.seed}; the oracle caught {caught} of {caught} planted bugs")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        streams = progress.add_task("streams", total=settings.streams)
        faults = progress.add_task("faults", total=settings.faults)

        def tell(outcome: Outcome, doing: str) -> None:
            progress.update(streams, completed=len(outcome.journals))
            progress.update(faults, completed=len(outcome.faults), description=f"faults: {doing[:50]}")

        nemesis = Nemesis(settings.seed, weights)
        return await Campaign(settings, client(), workload, hand, nemesis, tell, history).run()
