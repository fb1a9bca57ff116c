"""What `manta doctor` reads from this machine; judging it is `deployments.commands.doctor`'s.

Torch is imported only inside `read_torch`, for the command line must start without it.
"""

import importlib.metadata
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine.errors import KernelBuildError
from engine.kernels import build as kernel_build
from engine.kernels.cpu import cpu_model, native_bf16
from parallel.cores import read_host_cores

GIB = 1024**3
DISTRIBUTION = "manta-serve"
_PIN = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?==([^\s;]+)$")


@dataclass(frozen=True, slots=True)
class TorchReading:
    import_s: float
    devices: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class CoreReading:
    num_cores: int
    quota: float | None
    model: str
    native_bf16: bool


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Bytes; `limit` is the container's, None without one."""

    available: int
    total: int
    limit: int | None


@dataclass(frozen=True, slots=True)
class KernelReading:
    """Where the library is and which instructions it will use, or why there is none."""

    path: str = ""
    instructions: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """`devices` as torch sees them, `driver` as the driver's own tool names it."""

    devices: tuple[str, ...]
    driver: str


@dataclass(frozen=True, slots=True)
class PortReading:
    host: str
    port: int
    error: str = ""
    owner: str = ""


@dataclass(frozen=True, slots=True)
class DiskReading:
    """Bytes."""

    folder: str
    free: int
    total: int


def read_python() -> tuple[int, int, int]:
    """Version of this interpreter."""
    return sys.version_info[:3]


def read_pins() -> dict[str, str]:
    """Package -> version, as pyproject.toml pins the run-time dependencies; empty when Manta is not installed."""
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {match[1]: match[2] for text in requirements if (match := _PIN.match(text))}


def read_installed() -> dict[str, str | None]:
    """Package -> installed version, None when missing, for every pinned package."""
    return {name: _installed_version(name) for name in read_pins()}


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_torch() -> TorchReading:
    """Import torch and ask it for CUDA devices."""
    started = time.monotonic()
    try:
        import torch
    except (ImportError, OSError) as error:
        return TorchReading(time.monotonic() - started, error=f"{type(error).__name__}: {error}")
    import_s = time.monotonic() - started
    names = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        names.append(f"{properties.name} ({properties.total_memory / GIB:.0f} GiB)")
    return TorchReading(import_s, tuple(names))


def read_cores() -> CoreReading:
    """Cores this process may use."""
    host = read_host_cores()
    return CoreReading(host.num_cores, host.quota, cpu_model(), native_bf16())


def read_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> MemoryReading:
    """Free memory of the host, or what is left under the container's limit when that is less."""
    host = psutil.virtual_memory()
    limit = _read_bytes(cgroup / "memory.max") or _read_bytes(cgroup / "memory" / "memory.limit_in_bytes")
    used = _read_bytes(cgroup / "memory.current") or _read_bytes(cgroup / "memory" / "memory.usage_in_bytes")
    if limit is None or limit >= host.total:
        return MemoryReading(host.available, host.total, None)
    return MemoryReading(min(host.available, max(0, limit - (used or 0))), host.total, limit)


def _read_bytes(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def read_compiler() -> str | None:
    """Path of the C++ compiler that the kernels would be made with."""
    try:
        return kernel_build.find_compiler()
    except KernelBuildError:
        return None


def read_kernels() -> KernelReading:
    """Compile the kernels unless they are there, and load them; the error is the compiler's own line."""
    try:
        path = kernel_build.build()
        from engine.kernels.library import open_library

        return KernelReading(str(path), open_library(str(path)).isa.name)
    except KernelBuildError as error:
        lines = [line for line in error.output.splitlines() if line.strip()] or [str(error)]
        return KernelReading(error=next((line for line in lines if "error" in line), lines[-1]))
    except (ImportError, OSError) as error:
        return KernelReading(error=f"{type(error).__name__}: {error}")


def read_gpu(torch: TorchReading) -> GpuReading:
    """CUDA devices, and what nvidia-smi names where it is installed."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return GpuReading(torch.devices, "")
    command = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return GpuReading(torch.devices, "nvidia-smi does not answer")
    return GpuReading(torch.devices, "; ".join(done.stdout.split("\n")).strip("; ") if done.returncode == 0 else "")


def read_port(host: str, port: int) -> PortReading:
    """Try to listen there, as the gateway will."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return PortReading(host, port, error.strerror or str(error), _port_owner(port))
    return PortReading(host, port)


def _port_owner(port: int) -> str:
    """Name and id of the process that listens on `port`, where we may see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", None) == port
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        pass
    return ""


def read_disk() -> DiskReading:
    """The disk of the temporary folder, where Ray keeps its sessions."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    usage = shutil.disk_usage(folder)
    return DiskReading(folder, usage.free, usage.total)


def read_shared_memory(folder: Path = Path("/dev/shm")) -> DiskReading | None:
    """/dev/shm, None where there is none."""
    if not folder.is_dir():
        return None
    usage = shutil.disk_usage(folder)
    return DiskReading(str(folder), usage.free, usage.total)


def read_open_files() -> int:
    """How many files a process may have open without asking for more."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else sys.maxsize
