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
import time
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
    Here,
    Loaded,
    Meet,
    Met,
    Pong,
    RankStart,
    Ready,
    broken_by,
    read_start,
)
from engine.step_progress import StepProgress
from parallel.cores import CoreShare
from parallel.gpus import VISIBLE, visible_to_rank

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
        rank.meet()
        rank.load()
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
        if rank is not None:
            rank.leave()
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
        self._cores = CoreShare(start.cores, start.num_threads) if start.cores else None
        if self._cores is not None:
            self._cores.pin_thread()
        wait_briefly()  # before torch brings OpenMP
        if start.config.device != "cpu":
            os.environ[VISIBLE] = visible_to_rank(start.gpu, os.environ)  # likewise
        import torch

        from engine.checkpoint import read_checkpoint
        from engine.device_choice import choose_device
        from engine.kernels.library import load_kernels
        from engine.rank_facts import read_facts
        from engine.rank_part import RankPart
        from parallel.layout import RankLayout
        from parallel.process_group import Progress

        torch.set_num_threads(start.num_threads)
        self._place = Progress()
        self._device = choose_device(start.config.device)
        self._kernels = load_kernels() if self._device.type == "cpu" else None
        self._part = RankPart(RankLayout(start.tensor_parallel, start.pipeline_parallel), start.rank)
        self._checkpoint = read_checkpoint(Path(start.folder), start.model)
        connection.send(Here(read_facts(start, self._checkpoint, self._device, self._kernels)))
        self._groups: Any = None
        self._runner: Any = None

    @property
    def step(self) -> int:
        """Number of the step that is or was computed last."""
        return self._place.step

    def leave(self) -> None:
        """Wait for no other rank any more."""
        if self._groups is not None:
            self._groups.abort()

    def meet(self) -> None:
        """Join the others by the way that the driver has chosen, and measure it."""
        while not isinstance(call := self._connection.receive(), Meet):
            self._connection.send(Pong(time.time()))
        from engine.kernels.shared_group import join_shared_memory
        from parallel.preflight_facts import Transport
        from parallel.preflight_probe import measure_rank
        from parallel.process_group import addresses_by_interface, join_groups, nccl_environment, reach_store

        start, layout = self._start, self._part.layout
        mine = call.tensor[layout.position(start.rank).pp_rank]
        waits: dict[str, Any] = {"timeout_s": start.timeout_s, "progress": self._place}
        by_memory = None
        if mine is Transport.MEMORY and self._kernels is not None:
            by_memory = partial(join_shared_memory, self._kernels, **waits)
        if mine is Transport.NCCL:
            for name, value in nccl_environment(start.address, start.timeout_s, addresses_by_interface()).items():
                os.environ.setdefault(name, value)
        store = reach_store(start.host, start.store_port, start.generation, start.timeout_s)
        self._groups = join_groups(
            store, layout, start.rank, host=start.address, transport=call.pipe, device=self._device,
            join_tensor_group=by_memory, **waits,
        )  # fmt: skip
        measures_mates = call.is_rehearsal or mine is not Transport.NCCL  # each pair would keep memory of the GPU
        speeds = measure_rank(self._groups, layout, start.rank, self._device, measures_mates=measures_mates)
        self._connection.send(Met(speeds))

    def load(self) -> None:
        """The part of the model, when all have met; then the cache, when all have loaded."""
        from engine.model_start import build_runner, count_fitting_blocks, load_part

        self._connection.receive()
        start, config = self._start, self._start.config
        loaded, limit = load_part(self._checkpoint, config, self._device, self._kernels, self._part)
        num_blocks = count_fitting_blocks(loaded, config, limit, start.num_sharing)
        weights = (tensor.nbytes for tensor in (*loaded.module.parameters(), *loaded.module.buffers()))
        dtype = str(loaded.dtype).removeprefix("torch.")
        self._connection.send(Loaded(dtype, str(self._device), loaded.vocab_size, limit, num_blocks, sum(weights)))
        order: Allocate = self._connection.receive()  # comes when all have loaded
        self._part.connect(loaded.module, self._groups)
        self._runner = build_runner(
            loaded, self._kernels, config, num_blocks=order.num_blocks, max_model_len=order.max_model_len,
            cores=self._cores,
        )  # fmt: skip
        self._connection.send(Ready(self._runner.attention_name))

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
