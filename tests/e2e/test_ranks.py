"""`manta serve` with tensor-parallel ranks: the text of one rank, and a killed rank loses no token of a stream."""

import os
import signal
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
    family = psutil.Process(server.process.pid).children(recursive=True)
    return [child.pid for child in family if "engine.rank_process" in child.cmdline()]


def test_ranks_serve_and_a_killed_one_loses_no_token(tmp_path: Path) -> None:
    settings = ("--replicas", "1", "--set", "engine.dtype=float32")
    with live_server(tmp_path / "one.log", "demo", *settings) as server:
        expected = text(server)
    with live_server(tmp_path / "two.log", "demo", *settings, "--set", "tensor_parallel=2") as server:
        assert text(server) == expected
        pids = rank_pids(server)
        assert len(pids) == 2
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
        assert len(new := rank_pids(server)) == 2 and not set(new) & set(pids)
