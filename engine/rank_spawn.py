"""Starts the rank processes of a replica, each on the host of its stage, and sees to it that none outlives it."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from engine.checkpoint import find_checkpoint
from engine.framing import encode
from engine.rank_frames import SPARE, RankStart
from parallel.cores import CoreShare
from parallel.layout import RankLayout

LOOPBACK = "127.0.0.1"
_END_S = 5.0
#: A rank asks a name server only because torch looks up the names of addresses to log them: it need not wait for it.
_DEFAULTS = {"RES_OPTIONS": "timeout:1 attempts:1"}


class StagePlace(msgspec.Struct, frozen=True):
    """Where the ranks of one pipeline stage run, and what is theirs there."""

    address: str = LOOPBACK  #: at which the other stages reach the host
    folder: str = ""  #: of the model's files there, when they have been found
    cores: tuple[CoreShare, ...] = ()  #: one share for each rank; none: any core
    first_gpu: int = 0  #: of those that processes there can see; its ranks take one each from here on
    num_sharing: int = 1  #: ranks of all replicas that share the host's memory


class RankProcess(Protocol):
    """One rank process, on whatever host."""

    @property
    def pid(self) -> int:
        """On its host."""

    def exit_code(self) -> int | None:
        """None while it runs, negative after a signal; does not wait."""

    def kill(self) -> None:
        """End it at once."""


class RankSpawner(Protocol):
    """Starts the ranks of one replica."""

    @property
    def places(self) -> Sequence[StagePlace]:
        """By stage."""

    def find_model(self, model: str) -> Path:
        """Find (or download) the files on each host, so that `places` know them; the folder on the driver's own.

        Raises `BadCheckpoint`.
        """

    def start(self, stage: int, start: RankStart) -> RankProcess:
        """One more process where this stage runs, at any time; a spare, if there is one. Raises OSError."""

    def keep_spares(self, count: int) -> None:
        """On each host let so many processes import what a rank needs, and wait to be started. Raises OSError."""

    def close(self, *, force: bool = False) -> None:
        """End all that were started: they leave when their input ends; by force after a while, or at once."""


class HostProcess:
    """A rank process of this host."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def begin(self, start: RankStart) -> None:
        """Tell it all. Raises OSError."""
        assert self._process.stdin is not None
        self._process.stdin.write(encode(msgspec.structs.replace(start, parent_pid=os.getpid())))
        self._process.stdin.flush()

    def exit_code(self) -> int | None:
        """See `RankProcess`."""
        return self._process.poll()

    def kill(self) -> None:
        """See `RankProcess`."""
        self._process.kill()

    def dismiss(self) -> None:
        """End its input, at which it leaves."""
        assert self._process.stdin is not None
        with suppress(OSError):  # what it never read, because it has ended
            self._process.stdin.close()

    def end(self, patience_s: float) -> None:
        """Gone when this returns, by force after this time."""
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class HostSpawner:
    """A `RankSpawner` of stages that are all on this host.

    One thread starts the processes and lives as long as they do: the kernel kills a rank when the thread that started
    it ends, and with this process all its threads end.
    """

    def __init__(self, places: Sequence[StagePlace]) -> None:
        self.places = places
        self._processes: list[HostProcess] = []
        self._spares: list[HostProcess] = []
        self._guard = ThreadPoolExecutor(1, "rank-guard")

    def find_model(self, model: str) -> Path:
        """See `RankSpawner`."""
        path = find_checkpoint(model)
        self.places = [msgspec.structs.replace(place, folder=str(path)) for place in self.places]
        return path

    def start(self, stage: int, start: RankStart) -> HostProcess:
        """See `RankSpawner`."""
        while self._spares:
            spare = self._spares.pop(0)
            with suppress(OSError):  # it has ended: the next one
                spare.begin(start)
                return spare
        process = self._launch()
        process.begin(start)
        return process

    def keep_spares(self, count: int) -> None:
        """See `RankSpawner`."""
        self._spares = [spare for spare in self._spares if spare.exit_code() is None]
        while len(self._spares) < count:
            self._spares.append(self._launch(SPARE))

    def _launch(self, *options: str) -> HostProcess:
        process = self._guard.submit(_launch, *options).result()
        self._processes.append(process)
        return process

    def close(self, *, force: bool = False) -> None:
        """See `RankSpawner`."""
        until = time.monotonic() + (0.0 if force else _END_S)
        for process in self._processes:
            process.dismiss()
        for process in self._processes:
            process.end(max(0.0, until - time.monotonic()))
        self._guard.shutdown()


def _launch(*options: str) -> HostProcess:
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "engine.rank_process", *options]
    environment = {**_DEFAULTS, **os.environ, "PYTHONPATH": path}
    return HostProcess(subprocess.Popen(command, stdin=subprocess.PIPE, env=environment))


def on_this_host(layout: RankLayout, cores: Sequence[CoreShare] = (), num_sharing: int = 1) -> HostSpawner:
    """All stages beside the driver; `cores`: one share for each rank, in order, or none."""
    stages = [layout.stage_ranks(stage) for stage in range(layout.pipeline_parallel)]
    return HostSpawner(
        [
            StagePlace(cores=tuple(cores[ranks.start : ranks.stop]), first_gpu=ranks.start, num_sharing=num_sharing)
            for ranks in stages
        ]
    )
