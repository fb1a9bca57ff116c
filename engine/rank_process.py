"""One rank of a replica: `python -m engine.rank_process`, started and told all by `engine.rank_spawn`.

It loads its part of the model, meets its group, and computes the plans that the driver sends until the connection
ends. It never outlives its driver.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

from engine.openmp import wait_briefly
from engine.rank_frames import (
    Allocate,
    Beat,
    Done,
    DriverConnection,
    DriverGone,
    Execute,
    Loaded,
    RankStart,
    Ready,
    broken_by,
    read_start,
)
from engine.step_progress import StepProgress
from parallel.cores import CoreShare

log = logging.getLogger(__name__)
BEAT_S = 0.1
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serve until the driver is gone."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal; the driver decides
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        start = read_start(sys.stdin.buffer)
        if os.getppid() != start.parent_pid:
            return 0  # it died before the signal was asked for
        threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
        connection = DriverConnection(start)
    except (DriverGone, OSError):
        return 0
    rank = None
    try:
        rank = _Rank(start, connection)
        rank.serve()
    except DriverGone:
        pass
    except BaseException as error:
        log.exception("rank %d ends", start.rank)
        step = rank.step if rank is not None else 0
        connection.send(broken_by(error, step))
        return 1
    finally:
        sys.stderr.flush()
    return 0


def _die_with_parent() -> None:
    """The kernel kills this process when the thread that started it ends, even while it is stopped (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _exit_at_end_of_input() -> None:
    """The driver holds the other end: when it is gone, so is this process, whatever its other threads wait for."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(0)


class _Rank:
    """The part of the model, the groups and the runner of this process."""

    def __init__(self, start: RankStart, connection: DriverConnection) -> None:
        self._start, self._connection = start, connection
        cores = CoreShare(start.cores, start.num_threads) if start.cores else None
        if cores is not None:
            cores.pin_thread()
        wait_briefly()  # before torch brings OpenMP
        from parallel.process_group import Progress

        self._place = Progress()
        self._runner: Any = self._load(cores)

    @property
    def step(self) -> int:
        """Number of the step that is or was computed last."""
        return self._place.step

    def _load(self, cores: CoreShare | None) -> Any:
        import torch

        from engine.checkpoint import read_checkpoint
        from engine.kernels.library import load_kernels
        from engine.kernels.shared_group import join_shared_memory
        from engine.model_loader import choose_device
        from engine.model_start import build_runner, count_fitting_blocks, load_part
        from engine.rank_part import RankPart
        from parallel.layout import RankLayout
        from parallel.process_group import join_groups, reach_store

        start = self._start
        torch.set_num_threads(start.num_threads)
        device = choose_device(start.config.device)
        kernels = load_kernels() if device.type == "cpu" else None
        part = RankPart(RankLayout(start.tensor_parallel, start.pipeline_parallel), start.rank)
        checkpoint = read_checkpoint(Path(start.folder), start.model)
        loaded, limit = load_part(checkpoint, start.config, device, kernels, part)
        num_blocks = count_fitting_blocks(loaded, start.config, limit, start.num_sharing)
        weights = (tensor.nbytes for tensor in (*loaded.module.parameters(), *loaded.module.buffers()))
        dtype = str(loaded.dtype).removeprefix("torch.")
        self._connection.send(Loaded(dtype, str(device), loaded.vocab_size, limit, num_blocks, sum(weights)))
        order: Allocate = self._connection.receive()  # comes when all have loaded
        store = reach_store(start.host, start.store_port, start.generation, start.timeout_s)
        waits: dict[str, Any] = {"timeout_s": start.timeout_s, "progress": self._place}
        by_memory = None if kernels is None else partial(join_shared_memory, kernels, **waits)
        groups = join_groups(store, part.layout, start.rank, host=start.address, join_tensor_group=by_memory, **waits)
        part.connect(loaded.module, groups)
        runner = build_runner(
            loaded, kernels, start.config, num_blocks=order.num_blocks, max_model_len=order.max_model_len, cores=cores
        )
        self._connection.send(Ready(runner.attention_name))
        return runner

    def serve(self) -> None:
        """Compute what comes. Raises `DriverGone` at the end."""
        runner, place, connection = self._runner, self._place, self._connection
        computing = threading.Event()
        threading.Thread(target=self._report, args=(computing, runner.progress), daemon=True).start()
        samples = runner.samples
        while True:
            order: Execute = connection.receive()
            place.step = order.plan.step
            computing.set()
            runner.learn_tokens(order.sampled)
            result = runner.execute(order.plan)
            computing.clear()
            if samples:
                connection.send(Done(result))

    def _report(self, computing: threading.Event, progress: StepProgress) -> None:
        pause = threading.Event()
        while True:
            computing.wait()
            pause.wait(BEAT_S)
            place, is_idle = self._place, not computing.is_set()
            try:
                self._connection.send(Beat(place.step, progress.count, place.collective, place.inside, is_idle))
            except OSError:
                return  # the driver is gone


if __name__ == "__main__":
    sys.exit(main())
