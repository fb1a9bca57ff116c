"""Starts the rank processes of one replica on this host, and sees to it that none outlives the replica."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue

from engine.framing import encode
from engine.rank_frames import RankStart

_END_S = 5.0


class RankProcesses:
    """One process for each start message.

    They are started by a thread of their own, which lives as long as they do: the kernel kills a rank when the thread
    that started it ends, and with the replica's process all its threads end.
    """

    def __init__(self, starts: list[RankStart]) -> None:
        self._starts = starts
        self._processes: list[subprocess.Popen[bytes]] = []
        self._started: SimpleQueue[OSError | None] = SimpleQueue()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._guard, name="rank-guard", daemon=True)
        self._thread.start()
        error = self._started.get()
        if error is not None:
            raise error

    @property
    def pids(self) -> list[int]:
        """By rank."""
        return [process.pid for process in self._processes]

    def exit_codes(self) -> list[int | None]:
        """By rank; None while it runs, negative after a signal."""
        return [process.poll() for process in self._processes]

    def close(self, *, force: bool = False) -> None:
        """End them: they leave when their input ends; by force after a while, or at once."""
        until = time.monotonic() + (0.0 if force else _END_S)
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._ending.set()
        self._thread.join()

    def _guard(self) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path}
        try:
            for start in self._starts:
                command = [sys.executable, "-m", "engine.rank_process"]
                process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
                self._processes.append(process)
                assert process.stdin is not None
                process.stdin.write(encode(start))
                process.stdin.flush()
        except OSError as error:
            self._started.put(error)
        else:
            self._started.put(None)
        self._ending.wait()
