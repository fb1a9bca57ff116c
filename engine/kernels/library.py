"""Loads the compiled CPU kernels; without a compiler the engine runs on torch's own operations."""

import ctypes
import enum
import functools
import logging
import os
import platform
from dataclasses import dataclass

import torch

from engine.errors import KernelBuildError
from engine.kernels.build import build

log = logging.getLogger(__name__)

#: `torch` here forces torch's own operations, `modules` leaves layers as modules (to compare, or around a defect).
KERNELS_VARIABLE = "MANTA_KERNELS"
_MACHINES = frozenset({"x86_64", "AMD64", "aarch64", "arm64"})


class Isa(enum.IntEnum):
    """What multiplies bf16; the numbers are those of native/isa.h."""

    GENERIC = 0
    AVX512_BF16 = 1
    AMX = 2


@dataclass(frozen=True)
class Kernels:
    """The loaded library and the instructions it may use."""

    library: ctypes.CDLL
    isa: Isa

    def with_isa(self, isa: Isa) -> "Kernels":
        """The same library held to lesser instructions (tests do this)."""
        if isa > self.isa:
            raise ValueError(f"this CPU has no {isa.name}")
        return Kernels(self.library, isa)


def load_kernels() -> Kernels | None:
    """The kernels, compiled if need be; None, and one line in the log that says why, where that cannot be."""
    return _load(os.environ.get(KERNELS_VARIABLE, "native"))


def layers_stay_modules() -> bool:
    """Whether the environment forbids to run all layers as one call."""
    return os.environ.get(KERNELS_VARIABLE) == "modules"


@functools.cache
def _load(choice: str) -> Kernels | None:
    if choice == "torch":
        log.info("CPU kernels switched off by %s=torch", KERNELS_VARIABLE)
        return None
    if platform.system() != "Linux" or platform.machine() not in _MACHINES:
        log.warning("no CPU kernels for %s %s: using torch's own", platform.system(), platform.machine())
        return None
    try:
        return open_library(str(build()))
    except (KernelBuildError, OSError) as error:
        log.warning("using torch's own operations, which are slower: %s", error)
        return None


def open_library(path: str) -> Kernels:
    """Bind the C functions. torch is imported above, so its OpenMP library is the one that is found."""
    library = ctypes.CDLL(path)
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = [_CTYPES[code] for code in arguments]
        function.restype = ctypes.c_int if name in _ANSWERING else None
    return Kernels(library, Isa(library.manta_best_isa()))


def thread_count() -> int:
    """Threads a kernel uses: torch's own number, so that both share one pool."""
    return torch.get_num_threads()


_CTYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}
#: Name and argument kinds of every exported function: p pointer, l int64, i int, f float.
_SIGNATURES = {
    "manta_best_isa": "",
    "manta_pack_weight": "pplll",
    "manta_linear": "iipppplllli",
    "manta_rms_norm": "iippplllfi",
    "manta_argmax": "iipplll",
    "manta_draw": "iippppppplll",
    "manta_rotary": "iipppplllll",
    "manta_write_kv": "ipppppllliii",
    "manta_attention": "iiippppppppllliiiiffi",
    "manta_decode": "iipp",
    "manta_shared_bytes": "i",
    "manta_shared_all_reduce": "iipiipli",
    "manta_shared_gather": "piippli",
    "manta_shared_abort": "p",
}
#: Those that return an int.
_ANSWERING = frozenset(
    {"manta_best_isa", "manta_decode", "manta_shared_bytes", "manta_shared_all_reduce", "manta_shared_gather"}
)
