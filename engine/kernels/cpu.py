"""What this CPU can do, as far as a choice of ours depends on it."""

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
#: Either one multiplies bf16 directly; without them bf16 arithmetic is emulated and float32 is faster.
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def cpu_flags() -> frozenset[str]:
    """Feature names of the first core as the kernel lists them; empty where it lists none."""
    if not _CPUINFO.exists():
        return frozenset()
    for line in _CPUINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def cpu_model() -> str:
    """Architecture and model name, for a cache key and for the log."""
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return f"{platform.machine()} {value.strip()}"
    return platform.machine()


def native_bf16() -> bool:
    """Whether this CPU multiplies bf16 directly (AVX512_BF16, AMX or Arm's BF16)."""
    return not _BF16_FLAGS.isdisjoint(cpu_flags())
