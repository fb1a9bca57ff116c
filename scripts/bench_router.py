"""The router shard's decisions per second on one core: plain calls, no socket.

Two regimes, each for every policy and number of replicas:

    backlog   a long queue of many tenants; each report of a replica frees one slot, which takes the request whose turn
              it is, while one more arrives: fairness, credit and the queue's bookkeeping
    choice    all replicas have credit and nothing waits; each request chooses among all of them as it comes
"""

import argparse
import json
import time
from collections.abc import Callable
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cluster.config import Policy, RouterConfig
from cluster.frames import Announce, Ended, Enqueue, Grant, Outcome, ReplicaInfo, Report
from cluster.router.router import Outbox, Router
from cluster.routing.policy import policy_of
from engine.config import EngineInfo
from engine.request import EngineLoad

SLOTS = 64
BLOCKS = 4096
BLOCK_SIZE = 32
PROMPT_BLOCKS = 16
NUM_PREFIXES = 1000
NUM_TENANTS = 50
OPEN_ENDED = 1_000_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replicas", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--queued", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=20_000, help="measured, in each regime")
    parser.add_argument("--policies", nargs="*", default=[str(policy) for policy in Policy])
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    cases = [(Policy(policy), number) for policy in args.policies for number in args.replicas]
    results = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("router", total=2 * len(cases))
        for policy, num_replicas in cases:
            progress.update(task, description=f"{policy}, {num_replicas} replicas")
            result: dict[str, Any] = {"policy": str(policy), "replicas": num_replicas}
            for regime, measure in (("backlog", _backlog), ("choice", _choice)):
                bench = RouterBench(policy, num_replicas, args.queued)
                result[regime] = measure(bench, args)
                progress.advance(task)
            results.append(result)
    if args.json:
        print(json.dumps(results))
    else:
        _show(results, args)
    return 0


class RouterBench:
    """A router with replicas and a stream of requests; counts the CPU time inside the router only."""

    def __init__(self, policy: Policy, num_replicas: int, num_queued: int) -> None:
        config = RouterConfig(
            policy=policy,
            max_queued_requests=100 * num_queued,
            max_queued_tokens=OPEN_ENDED * num_queued,
            report_timeout_s=OPEN_ENDED,
        )
        self.router = Router(config, policy_of(config))
        self.rng = Random(0)
        self.infos = [_replica(number) for number in range(num_replicas)]
        self.accepted: dict[str, list[tuple[str, int]]] = {info.replica_id: [] for info in self.infos}
        self.running: list[tuple[str, str, str]] = []  # request, tenant, replica
        self.seconds: dict[str, float] = {}
        self._tenants: dict[str, str] = {}
        self._now = 0.0
        self._num_asked = 0
        for info in self.infos:
            self.router.on_announce(Announce(info), 0.0)

    def arrive(self) -> int:
        """One request comes; returns how many grants that caused."""
        self._num_asked += 1
        name, tenant = f"request-{self._num_asked}", f"tenant-{self.rng.randrange(NUM_TENANTS)}"
        self._tenants[name] = tenant
        asked = Enqueue(
            name,
            0,
            "m",
            tenant,
            0,
            float(OPEN_ENDED),
            PROMPT_BLOCKS * BLOCK_SIZE,
            256,
            block_hashes=_hashes(self.rng.randrange(NUM_PREFIXES), self._num_asked),
            session=f"session-{self.rng.randrange(NUM_PREFIXES)}",
        )
        return self._timed("enqueue", lambda now: self.router.on_enqueue("gateway", asked, now))

    def report(self, info: ReplicaInfo, free_slots: int) -> int:
        accepted = self.accepted[info.replica_id]
        self.accepted[info.replica_id] = []
        queued = self.rng.randrange(2048)
        load = EngineLoad(1, SLOTS - free_slots, 0, free_slots, BLOCKS // 2, queued, remaining_tokens=64 * SLOTS)
        return self._timed("report", lambda now: self.router.on_report(info, Report(load, accepted), now))

    def end_one(self) -> None:
        """Some running request ends."""
        index = self.rng.randrange(len(self.running))
        self.running[index], self.running[-1] = self.running[-1], self.running[index]
        name, tenant, replica_id = self.running.pop()
        ended = Ended(name, 0, "m", tenant, replica_id, Outcome.OK, 100, 256, True)
        self._timed("end", lambda now: self.router.on_ended(ended, now))

    def _timed(self, what: str, event: Callable[[float], Outbox]) -> int:
        self._now += 1e-5
        began = time.thread_time()
        outbox = event(self._now)
        self.seconds[what] = self.seconds.get(what, 0.0) + time.thread_time() - began
        num_granted = 0
        for _, message in outbox:
            if isinstance(message, Grant):
                num_granted += 1
                self.accepted[message.replica_id].append((message.request_id, message.attempt))
                self.running.append((message.request_id, self._tenants.pop(message.request_id), message.replica_id))
        return num_granted

    def start_counting(self) -> None:
        self.seconds = {}

    def result(self, num_requests: int) -> dict[str, float]:
        """Microseconds per request by kind of event, all together, and requests per second."""
        each = {f"{what}_us": round(1e6 * seconds / num_requests, 1) for what, seconds in self.seconds.items()}
        total = sum(self.seconds.values())
        return {**each, "us_per_request": round(1e6 * total / num_requests, 1), "per_s": round(num_requests / total)}


def _backlog(bench: RouterBench, args: argparse.Namespace) -> dict[str, float]:
    for _ in range(args.queued):
        bench.arrive()
    bench.report(bench.infos[0], 1)  # what a policy builds at its first choice is not counted
    bench.start_counting()
    num_granted = 0
    while num_granted < args.requests:
        bench.arrive()
        num_granted += bench.report(bench.rng.choice(bench.infos), 1)
        if len(bench.running) > SLOTS:
            bench.end_one()
    return bench.result(num_granted)


def _choice(bench: RouterBench, args: argparse.Namespace) -> dict[str, float]:
    for info in bench.infos:
        bench.report(info, SLOTS)
    bench.arrive()
    bench.start_counting()
    for number in range(args.requests):
        granted = bench.arrive()
        assert granted == 1, "a request waits although all replicas have credit"
        info = bench.infos[number % len(bench.infos)]
        bench.report(info, SLOTS // 2)
        if len(bench.running) > SLOTS:
            bench.end_one()
    return bench.result(args.requests)


def _replica(number: int) -> ReplicaInfo:
    engine = EngineInfo(
        model_path="nowhere",
        architecture="Null",
        weights_revision="r0",
        dtype="float32",
        device="cpu",
        vocab_size=1000,
        max_model_len=4096,
        block_size=BLOCK_SIZE,
        num_blocks=BLOCKS,
        max_num_seqs=SLOTS,
    )
    return ReplicaInfo(f"replica-{number}", "m", "127.0.0.1", 1, [], "host", engine)


def _hashes(prefix: int, request: int) -> list[bytes]:
    """Half of the prompt is shared with others of the same prefix."""
    shared = [b"%8d%8d" % (prefix, block) for block in range(PROMPT_BLOCKS // 2)]
    return shared + [b"%8d%8d" % (NUM_PREFIXES + request, block) for block in range(PROMPT_BLOCKS // 2)]


def _show(results: list[dict[str, Any]], args: argparse.Namespace) -> None:
    table = Table(
        title=f"One core; backlog: {args.queued:,} queued; {NUM_TENANTS} tenants, {PROMPT_BLOCKS} blocks each"
    )
    for column in ("policy", "replicas", "backlog: us/request", "requests/s", "choice: us/request", "requests/s"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for result in results:
        numbers = [
            f"{result[regime][key]:,}" for regime in ("backlog", "choice") for key in ("us_per_request", "per_s")
        ]
        table.add_row(result["policy"], f"{result['replicas']:,}", *numbers)
    Console().print(table)
