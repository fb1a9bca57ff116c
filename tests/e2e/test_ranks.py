"""`manta serve` with tensor-parallel ranks: the text of one rank; a killed rank is replaced and no token is lost."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.live_server import LiveServer, live_server

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]
BODY = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 400, "temperature": 0, "ignore_eos": True}


def text(server: LiveServer) -> str:
    answer = httpx.post(f"{server.url}/v1/completions", json=BODY, timeout=120.0)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def rank_pids(server: LiveServer) -> list[int]:
    """Spares too."""
    found = []
    for child in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [child.pid] if "engine.rank_process" in child.cmdline() else []
    return sorted(found)


def test_ranks_serve_and_a_killed_one_loses_no_token(tmp_path: Path) -> None:
    settings = ("--replicas", "1", "--set", "engine.dtype=float32")
    with live_server(tmp_path / "one.log", "demo", *settings) as server:
        expected = text(server)
    with live_server(tmp_path / "two.log", "demo", *settings, "--set", "tensor_parallel=2") as server:
        assert text(server) == expected
        pids = rank_pids(server)
        assert len(pids) == 3, "two and a spare"
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json={**BODY, "stream": True}, timeout=300.0
        ) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            os.kill(pids[1], signal.SIGKILL)
            events = [first, *lines]
        assert "data: [DONE]" in events
        assert len([line for line in events if line.startswith("data: {")]) >= 300
        assert text(server) == expected
        assert set(rank_pids(server)) & set(pids) == {pids[0], pids[2]}, "the other rank goes on, and the spare with it"
