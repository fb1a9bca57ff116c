"""Which device an engine computes on, and what to say where it is not there."""

import os
import re

import torch

from engine.errors import ConfigError
from parallel.gpus import VISIBLE

_KEY = "engine.device"
_KNOWN = re.compile(r"auto|cpu|cuda(:\d+)?")


def choose_device(device: str) -> torch.device:
    """`auto` is cuda where there is one. Raises `ConfigError` for a device that is not there."""
    chosen = device_of(device)
    if chosen.type == "cpu":
        return chosen
    if not torch.cuda.is_available():
        raise ConfigError(_KEY, device, f"{_what_is_missing()}; or give cpu")
    index = chosen.index or 0
    if index >= torch.cuda.device_count():
        raise ConfigError(_KEY, device, f"torch sees {torch.cuda.device_count()} of them, counted from 0")
    return torch.device("cuda", index)


def device_of(device: str) -> torch.device:
    """The same, which may be another host's: nobody looks whether it is there."""
    if not _KNOWN.fullmatch(device):
        raise ConfigError(_KEY, device, "give auto, cpu, cuda or cuda:N")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def device_of_ranks(device: str) -> torch.device:
    """Of many ranks, each of which has one of its own."""
    chosen = device_of(device)
    if ":" in device:
        remedy = f"many ranks take one GPU each: give cuda, and in {VISIBLE} which ones they may take"
        raise ConfigError(_KEY, device, remedy)
    return chosen


def _what_is_missing() -> str:
    if getattr(torch.version, "cuda", None) is None:
        return f"torch {torch.__version__} is a build without CUDA: install one with it"
    return (
        f"torch {torch.__version__} (for CUDA {torch.version.cuda}) sees no CUDA device: `nvidia-smi` says whether the "
        f"driver runs, and {VISIBLE} (it is {os.environ.get(VISIBLE)!r}) must name GPUs that are there"
    )
