"""`scripts/chaos` as a person starts it, short: real processes die, and nobody notices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

KINDS = "kill-replica,freeze-replica,drain-replica,kill-shard,kill-gateway,kill-controller"


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(180)
def test_no_stream_is_lost_under_faults(tmp_path: Path) -> None:
    """The lengths of gaps are not judged here: the machine has other tests to run."""
    history = tmp_path / "history.jsonl"
    options = ["--streams", "60", "--faults", "8", "--seed", "11", "--rate", "4", "--kinds", KINDS]
    command = [sys.executable, "-m", "scripts.chaos_run", *options, "--without-gaps", "--json", str(history)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    records = [json.loads(line) for line in history.read_text().splitlines()]
    faults = [record["fault"] for record in records if "fault" in record]
    assert len(faults) == 8 and len(set(faults)) >= 4
    assert len(records) - len(faults) >= 60
    assert "0 lost, 0 duplicated, 0 changed, 0 client errors" in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--url", "http://127.0.0.1:9", "--address", "127.0.0.1:9"], "cannot inject faults"),
        (["--kinds", "earthquake"], "earthquake"),
    ],
)
def test_what_cannot_be_done_is_refused(options: list[str], words: str) -> None:
    command = [sys.executable, "-m", "scripts.chaos_run", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
