"""Checks the engine on this machine's CUDA devices: `python -m scripts.gpu_check [MODEL]`.

Runs the exactness tests on the device (tests/engine/test_gpu.py), of one process and of ranks (test_gpu_ranks.py); lets
one rank for each device check the others, and times NCCL; then a short benchmark of MODEL, or of a small random Llama.
Exit code 0: all good, 1: something is wrong, 2: there is no CUDA device, so nothing was checked.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from deployments.commands.preflight import show
from engine.config import EngineConfig
from engine.device_choice import choose_device
from engine.errors import ConfigError
from engine.phases import Phases
from engine.rank_spawn import on_this_host
from engine.rank_startup import rehearse_ranks
from parallel.layout import RankLayout
from parallel.process_group import Progress, TorchGroup, join_nccl
from scripts import bench_engine

_TESTS = Path(__file__).parent.parent / "tests" / "engine"
_TIMEOUT_S = 60.0
_SIZES = (896, 8192, 32 * 8192)
NO_DEVICE = 2


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.gpu_check", description=__doc__)
    parser.add_argument("model", nargs="?", help="benchmark this model instead of a small random one")
    args = parser.parse_args()
    try:
        device = choose_device("cuda")
    except ConfigError as error:
        print(f"nothing was checked: {error.remedy}")
        return NO_DEVICE
    count = torch.cuda.device_count()
    print(f"{count} x {torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    tests = [str(_TESTS / name) for name in ("test_gpu.py", "test_gpu_ranks.py")]
    if pytest.main([*tests, "-q", "-rs", "-p", "no:cacheprovider"]) != 0:
        return 1
    time_nccl(device)
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model or random_llama(Path(scratch))
        check_ranks(model, count)
        return benchmark(model)


def time_nccl(device: torch.device) -> None:
    """What a sum costs at least: in a group of one nothing travels."""
    group = TorchGroup(join_nccl(dist.HashStore(), 0, 1, device, _TIMEOUT_S), Progress())
    print("NCCL all-reduce of bf16 in a group of one, us each of 1,000 in a row:")
    for size in _SIZES:
        data = torch.ones(size, dtype=torch.bfloat16, device=device)
        group.all_reduce(data)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(1000):
            group.all_reduce(data)
        torch.cuda.synchronize()
        print(f"  {size:8,} numbers: {(time.perf_counter() - started) * 1e3:8.1f}")
    group.abort()


def check_ranks(model: str, count: int) -> None:
    """A preflight of one rank for each device: NCCL among them, all pairs."""
    layout = RankLayout(count, 1)
    config = EngineConfig(device="cuda")
    found = rehearse_ranks(model, config, layout, on_this_host(layout), _TIMEOUT_S, Phases())
    show(Console(), found)


def benchmark(model: str) -> int:
    """Continuous and static batching of the same requests on the device."""
    parser = argparse.ArgumentParser()
    bench_engine.add_arguments(parser)
    options = ["--device", "cuda", "--requests", "128", "--max-num-seqs", "64", "--compare", "static"]
    return bench_engine.run(parser.parse_args([model, *options]))


def random_llama(folder: Path) -> str:
    """A checkpoint of 58M random weights in bf16: speed does not depend on what they say."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    sys.exit(main())
