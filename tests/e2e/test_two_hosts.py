"""Two replicas with stages on two Ray nodes: what one rank says, also when a rank is killed; nothing is left behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.live_server import LiveServer

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def test_stages_on_two_hosts(live_server: LiveServer, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.e2e.two_hosts", live_server.ray_address, str(tmp_path / "story")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    placed, under_load, streams, left = map(json.loads, (tmp_path / "story").read_text().splitlines())
    assert [sorted(addresses) for addresses in placed["addresses"]] == [["127.0.0.1", "127.0.0.2"]] * 2
    assert under_load["running"] > 0
    assert streams["is_exact"]
    assert left["ended"] == [True] * 4
