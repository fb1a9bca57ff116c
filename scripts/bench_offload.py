"""A model whose layers are streamed, against the same in memory: peak memory, tokens/s, and what bandwidth allows.

Each way in a process of its own.
"""

import argparse
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec

from engine.config import DType, EngineConfig, Offload
from scripts.bench_ranks import decode_ms

_PROBED_BYTES = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m scripts.bench offload`."""
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("--modes", type=Offload, nargs="+", default=[Offload.NONE, Offload.NVME], choices=list(Offload))
    parser.add_argument("--offload-dir", default="", help="folder on the disk to measure; default: for temporary files")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", type=DType, choices=list(DType), default=DType.AUTO)
    parser.add_argument("--sequences", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=16, help="decode steps measured")
    parser.add_argument("--context", type=int, default=64)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    context = get_context("spawn")
    for mode in args.modes:
        answers = context.Queue()
        process = context.Process(target=_measure, args=(args, mode, answers))
        process.start()
        process.join()
        if process.exitcode:
            print(f"offload {mode}: ended with {process.exitcode}")
            continue
        peak, layer_bytes, steps, bandwidth = answers.get()
        print(f"offload {mode}: {layer_bytes / 2**20:,.0f} MiB of layers, peak resident memory {peak / 2**20:,.0f} MiB")
        if bandwidth:
            print(f"  reading layers and nothing else: {bandwidth / 1e9:.2f} GB/s")
        for count, milliseconds in steps.items():
            line = f"  {count:3} sequences: {milliseconds:8.1f} ms a step, {1e3 * count / milliseconds:7.2f} tokens/s"
            if bandwidth:
                line += f"; reading alone allows {count * bandwidth / layer_bytes:.2f}"
            print(line)
    return 0


def _read_bandwidth(folder: str, layer_bytes: int) -> float:
    """Bytes a second at which layers of this size come from the file, when nothing computes."""
    import time

    import torch

    from engine.layer_stream import FileStore, make_slots, whole_pages

    store = FileStore(folder)
    layer = torch.randint(256, (whole_pages(layer_bytes),), dtype=torch.uint8)
    num_layers = max(2, _PROBED_BYTES // layer_bytes)
    for _ in range(num_layers):
        store.add(layer)
    slot = make_slots(store, len(layer), torch.device("cpu"))[0]
    started = time.perf_counter()
    for index in range(num_layers):
        store.fetch(index, slot)
    return len(layer) * num_layers / (time.perf_counter() - started)


def _measure(args: argparse.Namespace, mode: Offload, answers: Any) -> None:
    import torch

    from engine.checkpoint import find_checkpoint, read_checkpoint
    from engine.model_loader import choose_dtype, model_config
    from engine.model_sizes import measure_model
    from engine.openmp import wait_briefly
    from engine.startup import start_engine

    wait_briefly()
    config = EngineConfig(
        dtype=args.dtype,
        device=args.device,
        max_model_len=args.context + args.tokens + 8,
        max_num_seqs=max(args.sequences),
        prefix_caching=False,
    )
    if mode is not Offload.NONE:
        folder = args.offload_dir if mode is Offload.NVME else ""
        config = msgspec.structs.replace(config, offload=mode, offload_dir=folder)
    checkpoint = read_checkpoint(find_checkpoint(args.model), args.model)
    dtype = choose_dtype(args.dtype, checkpoint, torch.device(args.device))
    sizes = measure_model(checkpoint, model_config(checkpoint), dtype)
    core, _ = start_engine(args.model, config)
    steps = {count: decode_ms(core, count, args) for count in args.sequences}
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    layers = [layer.num_bytes for layer in sizes.stages(1, 1)[0].layers]
    bandwidth = _read_bandwidth(args.offload_dir, max(layers)) if mode is Offload.NVME else 0.0
    answers.put((int(peak.split()[1]) << 10, sum(layers), steps, bandwidth))
