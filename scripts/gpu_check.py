"""Checks the engine on this machine's CUDA device: `python -m scripts.gpu_check [MODEL]`.

Runs the exactness tests on the device (tests/engine/test_gpu.py), then a short benchmark there: of MODEL, or of a small
random Llama. Exit code 0: all good, 1: something is wrong, 2: there is no CUDA device, so nothing was checked.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from scripts import bench_engine

_ROOT = Path(__file__).parent.parent
NO_DEVICE = 2


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.gpu_check", description=__doc__)
    parser.add_argument("model", nargs="?", help="benchmark this model instead of a small random one")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"no CUDA device (torch {torch.__version__}, built for CUDA {torch.version.cuda}): nothing was checked")
        return NO_DEVICE
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    if pytest.main([str(_ROOT / "tests" / "engine" / "test_gpu.py"), "-q", "-p", "no:cacheprovider"]) != 0:
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        return benchmark(args.model or random_llama(Path(scratch)))


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
