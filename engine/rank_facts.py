"""Reads what a rank says of itself before it loads anything (`parallel.preflight_facts.RankFacts`)."""

import functools
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import torch
import transformers

from engine.checkpoint import Checkpoint
from engine.kernels.cpu import cpu_model
from engine.kernels.library import Kernels
from engine.kv_cache import free_memory
from engine.model_loader import choose_dtype
from engine.rank_frames import RankStart
from parallel.preflight_facts import RankFacts

_ROOT = Path(__file__).resolve().parent.parent
_DISTRIBUTION = "manta-serve"
_DIGEST_DIGITS = 8


def read_facts(start: RankStart, checkpoint: Checkpoint, device: torch.device, kernels: Kernels | None) -> RankFacts:
    """Of this process."""
    return RankFacts(
        host=os.uname().nodename,
        memory_domain=_memory_domain(),
        **code_versions(),
        nccl=_nccl_version() if device.type == "cuda" else "",
        device=device.type,
        device_name=_device_name(device),
        device_id=str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "",
        kernels="none" if kernels is None else "compiled",
        dtype=str(choose_dtype(start.config.dtype, checkpoint, device)).removeprefix("torch."),
        weights=checkpoint.weights_revision,
        num_threads=start.num_threads,
        free_bytes=free_memory(device),
        host_free_bytes=free_memory(torch.device("cpu")),
    )


def code_versions() -> dict[str, str]:
    """Of what computes: the fields of `RankFacts` that a driver can compare with its own."""
    return {
        "manta": _manta_version(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


@functools.cache
def _manta_version() -> str:
    """With a digest of the code that ranks run, for checkouts of one version differ."""
    digest = hashlib.blake2b(digest_size=_DIGEST_DIGITS // 2)
    for folder in ("engine", "parallel"):
        for file in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    try:
        version = importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        version = "uninstalled"
    return f"{version} ({digest.hexdigest()})"


def _nccl_version() -> str:
    version: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return ".".join(map(str, version))


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{cpu_model()} ({torch.backends.cpu.get_cpu_capability()})"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} (compute capability {properties.major}.{properties.minor})"


def _memory_domain() -> str:
    """Ranks share memory through /proc, so: this boot of a kernel, and the processes seen here."""
    boot, processes = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not boot.exists() or not processes.is_symlink():
        return os.uname().nodename
    return f"{boot.read_text().strip()} {processes.readlink()}"
