"""Many ranks: sums over gloo and shared memory, the driver's own cost of a step, whole steps against one rank.

Each rank computes on a core of its own.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

from engine.config import DType, EngineConfig
from engine.core import EngineCore
from engine.openmp import wait_briefly
from engine.step import StepPlan
from parallel.cores import read_host_cores, share_cores
from parallel.layout import RankLayout
from scripts.bench_pipeline import best_of, in_turn, numbered_requests, phases, with_steps_in_flight

_HOST = "127.0.0.1"
_TIMEOUT_S = 60.0
_SIZES = ((1, 896), (32, 896), (544, 896))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m scripts.bench ranks`."""
    parser.add_argument("model", nargs="?", help="a Hugging Face folder: steps of it too")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--dtype", type=DType, choices=list(DType), default=DType.AUTO)
    parser.add_argument("--sequences", type=int, nargs="*", default=[1, 8, 16])
    parser.add_argument("--tokens", type=int, default=64, help="decode steps measured")
    parser.add_argument("--rounds", type=int, default=3, help="of which the fastest counts")
    parser.add_argument("--context", type=int, default=128)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    wait_briefly()
    _bench_collectives(args.ranks)
    if args.model:
        _bench_steps(args)
    return 0


def _bench_collectives(ranks: int) -> None:
    from parallel.process_group import listen_store

    store = listen_store(_HOST, _TIMEOUT_S)
    context = get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=_collective_rank, args=(rank, ranks, store.port, results)) for rank in range(ranks)
    ]
    for worker in workers:
        worker.start()
    print(f"all-reduce of bf16 over {ranks} ranks, us, p50 / p99:")
    for name, rows, width, p50, p99 in results.get():
        print(f"  {name:14} {rows:4} x {width}: {p50:8.1f} / {p99:8.1f}")
    for worker in workers:
        worker.join()


def _collective_rank(rank: int, ranks: int, port: int, results: Any) -> None:
    share = share_cores(read_host_cores(), ranks)[rank]
    share.pin_thread()
    import torch
    from torch._C._distributed_c10d import PrefixStore

    from engine.kernels.library import load_kernels
    from engine.kernels.shared_group import join_shared_memory
    from parallel.process_group import Progress, join_groups, reach_store

    torch.set_num_threads(1)
    store = reach_store(_HOST, port, 0, _TIMEOUT_S)
    waits: dict[str, Any] = {"timeout_s": _TIMEOUT_S, "progress": Progress()}
    groups: dict[str, Any] = {"gloo": join_groups(store, RankLayout(ranks, 1), rank, host=_HOST, **waits).tensor}
    kernels = load_kernels()
    if kernels is not None:
        groups["shared memory"] = join_shared_memory(kernels, PrefixStore("memory", store), rank, ranks, **waits)
    rows = []
    for num_rows, width in _SIZES:
        data = torch.ones(num_rows, width, dtype=torch.bfloat16)
        for name, group in groups.items():
            samples = _timed(lambda group=group, data=data: group.all_reduce(data.fill_(1.0)), 2000)
            rows.append((name, num_rows, width, *samples))
    if rank == 0:
        results.put(rows)


def _timed(call: Callable[[], object], count: int) -> tuple[float, float]:
    """p50 and p99 in microseconds."""
    for _ in range(count // 10):
        call()
    samples = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        samples.append((time.perf_counter() - started) * 1e6)
    return statistics.median(samples), sorted(samples)[int(count * 0.99)]


def _bench_steps(args: argparse.Namespace) -> None:
    from engine.rank_spawn import on_this_host
    from engine.startup import start_engine, start_engine_of_ranks

    longest = args.context + args.tokens + 8
    config = EngineConfig(
        dtype=args.dtype,
        device="cpu",
        max_model_len=longest,
        max_num_seqs=max(args.sequences),
        kv_cache_tokens=2 * longest * max(args.sequences),
        prefix_caching=False,
    )
    host = read_host_cores()
    whole, shares = share_cores(host, 1)[0], share_cores(host, args.ranks)
    core, info = start_engine(args.model, config, cores=whole)
    whole.pin_thread()
    print(f"decode step of {args.model} ({info.dtype}), ms, p10:")
    for count in args.sequences:
        print(f"  1 rank, {whole.num_threads} threads, {count:3} sequences: {decode_ms(core, count, args):8.2f}")
        print(f"    {best_of([phases(core, count, args) for _ in range(args.rounds)])}")
    core.executor.close()
    for layout in (RankLayout(args.ranks, 1), RankLayout(1, args.ranks)):
        spawner = on_this_host(layout, shares, args.ranks)
        core, info = start_engine_of_ranks(args.model, config, layout, spawner=spawner)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, [cpu for cores in host.physical for cpu in cores])
        p50, p99 = _timed(lambda core=core: core.executor.execute(StepPlan(0, [], [], [])), 2000)
        print(f"  {layout}: an empty step, driver to ranks and back: {p50:.0f} us p50, {p99:.0f} us p99")
        for count in args.sequences:
            ms = decode_ms(with_steps_in_flight(core, config, info, 1), count, args)
            print(f"  {layout}, {count:3} sequences: {ms:8.2f}")
            for steps, measured in in_turn(core, config, info, count, args).items():
                print(f"    {steps} in flight: {best_of(measured)}")
        core.executor.close()


def decode_ms(core: EngineCore, count: int, args: argparse.Namespace) -> float:
    """Milliseconds of the step that a tenth of the steps in which all of `count` sequences decode fall below."""
    for request in numbered_requests(count, args.context, args.tokens):
        core.scheduler.add(request, 0.0)
    samples = []
    while True:
        started = time.perf_counter()
        chunks = core.step(0.0)
        if chunks is None:
            return sorted(samples)[len(samples) // 10]
        if len(chunks) == count:
            samples.append((time.perf_counter() - started) * 1e3)
