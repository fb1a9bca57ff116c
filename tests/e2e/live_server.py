"""`manta serve` as a user starts it: a process of its own, waited for, stopped by Ctrl-C, and nothing left behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class LiveServer:
    url: str
    model: str
    ray_address: str
    log: Path
    process: "subprocess.Popen[bytes]"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(log: Path, *args: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "RAY_memory_monitor_refresh_ms": "0"}
    with log.open("wb") as output:
        command = [sys.executable, "-m", "deployments.cli", "serve", *args]
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)


@contextmanager
def live_server(log: Path, *args: str, model: str = "demo") -> Iterator[LiveServer]:
    """Yields when the command says that it is ready; afterwards no process of it may be left."""
    port = free_port()
    process = start(log, *args, "--port", str(port))
    try:
        text = _wait_for(r"ready on (\S+)", log, process)
        address = re.search(r"Ray at (\S+)", text)
        assert address is not None, text
        yield LiveServer(f"http://127.0.0.1:{port}", model, address[1], log, process)
    finally:
        family = [process.pid]
        if process.poll() is None:  # else the log says why
            family += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
            process.send_signal(signal.SIGINT)
        code = process.wait(STOP_TIMEOUT_S)
        left = _alive(family)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert code == 0, log.read_text()
    assert left == [], f"processes outlived the command: {left}"


def _wait_for(pattern: str, log: Path, process: "subprocess.Popen[bytes]") -> str:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        text = log.read_text()
        if re.search(pattern, text):
            return text
        assert process.poll() is None, f"manta serve ended with {process.returncode}:\n{text}"
        time.sleep(0.1)
    raise AssertionError(f"no {pattern!r} within {START_TIMEOUT_S} s:\n{log.read_text()}")


def _alive(pids: list[int], patience_s: float = 5.0) -> list[int]:
    """Those that still run after a moment; a zombie does not."""
    until = time.monotonic() + patience_s
    while True:
        left = []
        for pid in pids:
            try:
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    left.append(pid)
            except psutil.NoSuchProcess:
                continue
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.1)
