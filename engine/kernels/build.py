"""Compiles the CPU kernels ahead of time: `python -m engine.kernels.build`.

The library lands in `${MANTA_CACHE_DIR:-~/.cache/manta}/kernels/<key>/`, where the key covers the sources, the
flags, the compiler and the CPU, so a stale library is never loaded. A build writes into a folder of its own and
renames it into place: two builds at once both succeed, and a killed one leaves nothing that a later one waits for.
"""

import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine.errors import KernelBuildError
from engine.kernels.cpu import cpu_flags, cpu_model

log = logging.getLogger(__name__)

LIBRARY_NAME = "libmanta_kernels.so"
_NATIVE = Path(__file__).parent / "native"
_COMPILE_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
)
_COMPILE_LIMIT_S = 300.0


class CompilerMissing(KernelBuildError):
    """There is no C++ compiler on this machine."""


def find_compiler() -> str:
    """Path of `$CXX`, g++ or c++, whichever is there first; raises `CompilerMissing`."""
    for name in (os.environ.get("CXX"), "g++", "c++"):
        if name and (path := shutil.which(name)):
            return path
    raise CompilerMissing("g++", "no C++ compiler found: install g++ (Debian: apt-get install g++) or set CXX")


def build(extra_flags: tuple[str, ...] = ()) -> Path:
    """The compiled library's path; compiles when this machine has none for these sources."""
    compiler = find_compiler()
    flags = (*_COMPILE_FLAGS, _architecture_flag(), *extra_flags)
    folder = cache_folder() / _build_key(compiler, flags)
    library = folder / LIBRARY_NAME
    if library.exists():
        return library
    folder.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="building-", dir=folder.parent) as scratch:
        _compile(compiler, flags, Path(scratch))
        folder.mkdir(exist_ok=True)
        (Path(scratch) / LIBRARY_NAME).replace(library)
    log.info("compiled the CPU kernels in %.1f s: %s", time.monotonic() - started, library)
    return library


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    base = os.environ.get("MANTA_CACHE_DIR")
    return (Path(base) if base else Path.home() / ".cache" / "manta") / "kernels"


def _architecture_flag() -> str:
    return "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"


def _build_key(compiler: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = [version, *flags, str(_openmp_library()), cpu_model(), *sorted(cpu_flags())]
    for part in parts:
        digest.update(part.encode() + b"\0")
    for source in sorted(_NATIVE.glob("*.[ch]*")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


def _openmp_library() -> Path | None:
    """The OpenMP library that torch brings along.

    Linking against that very file gives our library the same SONAME, so that the loader takes torch's copy and
    one process has one thread pool.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    found = [*sorted((package / "lib").glob("libgomp*.so*")), *sorted(package.parent.glob("torch.libs/libgomp*.so*"))]
    return found[0] if found else None


def _compile(compiler: str, flags: tuple[str, ...], scratch: Path) -> None:
    objects: list[str] = []
    running: list[tuple[list[str], subprocess.Popen[str]]] = []
    for source in sorted(_NATIVE.glob("*.cpp")):
        objects.append(str(scratch / f"{source.stem}.o"))
        command = [compiler, *flags, "-c", str(source), "-o", objects[-1]]
        running.append((command, _start(command)))
    for command, process in running:
        _finish(command, process)
    openmp = _openmp_library()
    link = [compiler, "-shared", *(f for f in flags if f.startswith("-fsanitize")), "-o", str(scratch / LIBRARY_NAME)]
    command = [*link, *objects, str(openmp) if openmp else "-lgomp"]
    _finish(command, _start(command))


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(command: list[str], process: subprocess.Popen[str]) -> None:
    try:
        output, _ = process.communicate(timeout=_COMPILE_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise KernelBuildError(" ".join(command), f"gave up after {_COMPILE_LIMIT_S:.0f} s\n{output}") from None
    if process.returncode != 0:
        raise KernelBuildError(" ".join(command), output)


def main() -> int:
    """Compile and say where the library is."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        library = build()
    except (KernelBuildError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"CPU kernels: {library}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
