"""`scripts/chaos`: streams under faults, and a verdict.

Exit code 0: nothing was wrong; 1: something was; 2: it could not run.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

import uvloop
from rich.console import Console

from cluster.config import CHAIN_MODEL
from deployments.commands.counting_bar import counting_bar
from engine.errors import MantaError
from scripts.chaos_run.campaign import Campaign, Outcome, Settings
from scripts.chaos_run.cluster_hand import ClusterHand
from scripts.chaos_run.nemesis import Kind, Nemesis
from scripts.chaos_run.report import details, failures, summary
from scripts.chaos_run.self_check import check_oracle
from scripts.chaos_run.served_app import ServedApp
from scripts.chaos_run.stream_client import Receive, StreamClient, as_it_comes
from scripts.chaos_run.targets import DEADLINE_S, GRACE_S, TARGETS, Target


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--streams", type=int, default=200, metavar="N", help="at least N requests (default: 200)")
    parser.add_argument("--faults", type=int, default=30, metavar="N", help="faults, one at a time (default: 30)")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--rate", type=float, default=8.0, metavar="R", help="new requests per second (default: 8)")
    parser.add_argument("--target", choices=TARGETS, default="manta", help="ray-serve: the baseline without Manta")
    parser.add_argument(
        "--model", default=CHAIN_MODEL, help="instead of the chain engine: `demo`, or a model directory"
    )
    parser.add_argument("--dtype", default="float32", help="with --model (default: float32)")
    parser.add_argument(
        "--ranks", type=int, default=1, metavar="N", help="processes of each engine, with --model (default: 1)"
    )
    parser.add_argument("--replicas", type=int, default=4, metavar="N", help="engines (default: 4)")
    parser.add_argument("--gateways", type=int, default=2, metavar="N", help="gateways (default: 2)")
    parser.add_argument("--step", type=float, default=0.02, metavar="S", help="seconds of the chain engine's step")
    parser.add_argument("--edge", choices=("direct", "proxy"), default="direct", help="who accepts HTTP connections")
    parser.add_argument(
        "--kinds", metavar="K,K", help=f"only these faults, equally often: {', '.join(Kind)} (default: a mix)"
    )
    parser.add_argument("--url", metavar="URL", help="a running server of the chain engine; faults hit its processes")
    parser.add_argument("--address", default="auto", help="with --url: its Ray cluster (default: the one running here)")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    parser.add_argument(
        "--without-gaps",
        action="store_true",
        help="tell the gaps, but do not fail for them (a machine with other work)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the history, one JSON line per request and fault"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep what the server under test says")
    args = parser.parse_args(argv)
    unknown = set(args.kinds.split(",")) - set(Kind) if args.kinds else set()
    if unknown:
        parser.error(f"unknown kinds {', '.join(sorted(unknown))}; there are {', '.join(Kind)}")
    return args


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
    target = TARGETS[args.target](args, folder)
    url, address = args.url, args.address
    if url is None:
        app = stack.enter_context(serving(target, args.log or folder / "server.log", console))
        url, address = app.url, app.ray_address
    hand, kinds = None, dict[Kind, float]()
    if args.faults:
        hand = ClusterHand(address, target.app)
        stack.callback(hand.close)
        kinds = dict(target.kinds(hand))
        if args.kinds:
            kinds = {Kind(kind): 1.0 for kind in args.kinds.split(",")}
    settings = Settings(
        seed=args.seed, streams=args.streams, faults=args.faults, rate=args.rate, keep_going=args.keep_going,
        config_file=target.config_file,
    )  # fmt: skip
    history = stack.enter_context(args.json.open("w")) if args.json is not None else None
    outcome = uvloop.run(_campaign(settings, target, url, hand, kinds, console, history))
    found = failures(outcome, with_gaps=bool(args.faults) and target.has_gap_bounds and not args.without_gaps)
    for line in details(outcome, found):
        console.print(line, markup=False, soft_wrap=True)
    print(summary(outcome, args.seed, bool(found)))
    return 1 if found else 0


@contextmanager
def serving(target: Target, log: Path, console: Console) -> Iterator[ServedApp]:
    """The target's server from here to the end of the block; complains of processes that outlive it."""
    app = ServedApp(target.command(), log)
    try:
        app.wait_ready(lambda line: console.print(f"server: {line}", markup=False, style="dim", soft_wrap=True))
        yield app
    finally:
        left = app.stop()
        if left:
            console.print(f"processes outlived the server and were killed: {left}")


async def _campaign(
    settings: Settings,
    target: Target,
    url: str,
    hand: ClusterHand | None,
    kinds: Mapping[Kind, float],
    console: Console,
    history: TextIO | None,
) -> Outcome:
    def client(receive: Receive) -> StreamClient:
        return StreamClient(url, target.model.served_name, DEADLINE_S + GRACE_S, receive, target.resumes)

    workload = await target.workload(settings.seed, client)
    caught = await check_oracle(workload, client)
    console.print(f"seed {settings.seed}; the oracle caught {caught} of {caught} planted bugs")
    with counting_bar(console) as progress:
        streams = progress.add_task("streams", total=settings.streams)
        faults = progress.add_task("faults", total=settings.faults)

        def tell(outcome: Outcome, doing: str) -> None:
            progress.update(streams, completed=len(outcome.journals))
            progress.update(faults, completed=len(outcome.faults), description=f"faults: {doing[:50]}")

        nemesis = Nemesis(settings.seed, kinds)
        return await Campaign(settings, client(as_it_comes), workload, hand, nemesis, tell, history).run()
