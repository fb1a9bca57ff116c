"""The server under test: `manta serve` as a user starts it, or the baseline, in a session of its own.

Whatever happens to its processes meanwhile, after `stop` none of them is left.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from deployments.commands.ray_environment import OUTER_ADDRESSES
from engine.errors import MantaError

ROOT = Path(__file__).resolve().parent.parent.parent
#: Ray would start its workers with niceness 15: then clients and whatever else runs here would go before the servers.
_RAY = {"RAY_memory_monitor_refresh_ms": "0", "RAY_worker_niceness": "0", OUTER_ADDRESSES: "0"}
START_TIMEOUT_S, STOP_TIMEOUT_S = 180.0, 20.0


class NotStarted(MantaError):
    """The server did not become ready; `why` holds the end of what it said."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"the server under test did not start:\n{self.why}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServedApp:
    """A command that serves, says `Ray at ADDRESS` and `ready on URL`, and ends on SIGINT."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, **_RAY, "PYTHONPATH": path}
        self._log = log
        self._family: dict[int, psutil.Process] = {}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command], stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                env=environment, start_new_session=True,
            )  # fmt: skip
        self.url = self.ray_address = ""

    def wait_ready(self, say: Callable[[str], None]) -> None:
        """Until it serves; `say` hears each line of its start."""
        until, heard = time.monotonic() + START_TIMEOUT_S, 0
        while not self.url:
            text = self._log.read_text(errors="replace")
            lines = text.splitlines()
            for line in lines[heard:]:
                say(line.strip())
            heard = len(lines)
            if self._process.poll() is not None or time.monotonic() > until:
                raise NotStarted("\n".join(lines[-20:]))
            found = re.search(r"ready on (\S+)", text)
            if found is not None:
                self.url = found[1]
                self.ray_address = re.search(r"Ray at (\S+)", text)[1]  # type: ignore[index]  # said before
            time.sleep(0.1)

    def note_family(self) -> list[psutil.Process]:
        """Remember the processes that are there: one whose parent dies is found again only by its pid. Returns all."""
        with suppress(psutil.NoSuchProcess):
            main = psutil.Process(self._process.pid)
            for process in (main, *main.children(recursive=True)):
                self._family[process.pid] = process
        return list(self._family.values())

    def stop(self) -> list[int]:
        """Ask, then insist. Returns the pids that outlived the command and had to be killed."""
        self.note_family()
        for process in self._family.values():
            with suppress(psutil.NoSuchProcess):
                if process.status() == psutil.STATUS_STOPPED:
                    process.kill()
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
            if self._process.poll() is None:
                self._process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_TIMEOUT_S)
        _, left = psutil.wait_procs([process for process in self._family.values() if _runs(process)], 5.0)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return [process.pid for process in left]


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
