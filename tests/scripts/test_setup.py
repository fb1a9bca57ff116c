"""scripts/setup: does nothing when nothing changed, and says what is missing."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def set_up(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(root / "scripts" / "setup"), *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def bare_checkout(tmp_path: Path) -> Path:
    """The project without its .venv."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup", tmp_path / "scripts" / "setup")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    return tmp_path


@pytest.mark.skipif(not (ROOT / ".venv" / ".manta-setup-dev").exists(), reason="not set up by scripts/setup --dev")
def test_a_second_time_takes_no_time_and_says_nothing() -> None:
    set_up(ROOT, "--dev")
    started = time.monotonic()
    done = set_up(ROOT, "--dev")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - started < 5


def test_a_python_that_is_too_old_is_refused(bare_checkout: Path) -> None:
    old = bare_checkout / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = set_up(bare_checkout, PYTHON=str(old))
    assert done.returncode == 1
    assert "Manta needs Python 3.11 or newer" in done.stderr and f"PYTHON={old} is not one" in done.stderr
    assert not (bare_checkout / ".venv").exists()


def test_an_installation_that_fails_shows_the_reason_and_is_not_taken_for_done(bare_checkout: Path) -> None:
    (bare_checkout / "pyproject.toml").write_text("[project]\nname = 'broken'\nversion = [nothing]\n")
    done = set_up(bare_checkout, TMPDIR=str(bare_checkout))
    assert done.returncode == 1
    assert "installing packages failed" in done.stderr and "at line 3" in done.stderr
    assert not (bare_checkout / ".venv" / ".manta-setup").exists()


def test_unknown_options_are_refused() -> None:
    done = set_up(ROOT, "--fast")
    assert (done.returncode, done.stderr) == (2, "usage: scripts/setup [--dev]\n")


@pytest.mark.parametrize("script", ["scripts/setup", "scripts/serve", "scripts/test", ".ci/run"])
def test_scripts_can_be_run(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
