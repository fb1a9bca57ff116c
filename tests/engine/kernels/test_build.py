"""Building: cached, safe for two at once, and clear when it fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import KernelBuildError
from engine.kernels import build as build_module
from engine.kernels.build import CompilerMissing, build, find_compiler
from engine.kernels.library import Kernels, load_kernels, open_library


def test_second_build_is_the_first_file(kernels: Kernels) -> None:
    library = build()
    changed = library.stat().st_mtime_ns
    assert build() == library
    assert library.stat().st_mtime_ns == changed


def test_two_builds_at_once_into_an_empty_cache(kernels: Kernels, tmp_path: Path) -> None:
    environment = {**os.environ, "MANTA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "engine.kernels.build"]
    root = Path(build_module.__file__).parents[2]
    running = [
        subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=100)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert outputs[0] == outputs[1]
    library = Path(outputs[0].removeprefix("CPU kernels: ").strip())
    assert open_library(str(library)).isa == kernels.isa
    assert [path.name for path in library.parent.parent.iterdir()] == [library.parent.name]


def test_compiler_errors_are_shown(kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTA_CACHE_DIR", str(tmp_path))
    with pytest.raises(KernelBuildError, match="no-such-option") as raised:
        build(("--no-such-option",))
    assert "-O3" in raised.value.command
    assert list((tmp_path / "kernels").iterdir()) == []


def test_missing_compiler_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(CompilerMissing, match="apt-get install g"):
        find_compiler()


def test_cxx_is_honoured(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = find_compiler()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", compiler)
    assert find_compiler() == compiler


def test_torch_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTA_KERNELS", "torch")
    assert load_kernels() is None


def test_one_openmp_runtime(kernels: Kernels) -> None:
    """Our library found torch's copy of libgomp: two would be two thread pools."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
    assert len(mapped) == 1
