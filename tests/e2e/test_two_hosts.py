"""Two stages of one replica on two Ray nodes: the tokens of one rank, and nothing outlives a lost rank or driver."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.live_server import LiveServer
from tests.e2e.two_hosts import SECOND

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def test_stages_on_two_hosts(live_server: LiveServer, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.e2e.two_hosts", live_server.ray_address, str(tmp_path / "story")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    served, lost, *ended = map(json.loads, (tmp_path / "story").read_text().splitlines())
    assert sorted(served["addresses"]) == ["127.0.0.1", SECOND]
    assert served["is_exact"] and served["num_tokens"] == 24
    assert "rank 1" in lost["lost"] and "signal 9" in lost["lost"]
    assert ended == [{"ended": [True, True]}] * 2
