"""One rank of a replica: `python -m engine.rank_process`, started and told all by `engine.rank_spawn`.

It meets its group, loads its part of the model, and computes the plans that the driver sends until the connection
ends. When another rank is lost it keeps its part and meets the next generation of the group. It never outlives its
driver. Called with `--spare` it imports what it needs before it waits to be told which rank it is.
"""

import ctypes
import gc
import importlib
import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from engine.openmp import wait_briefly
from engine.rank_frames import (
    SPARE,
    Abandon,
    Allocate,
    Beat,
    Broken,
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
    error_of,
    read_start,
)
from parallel.cores import CoreShare
from parallel.gpus import VISIBLE, visible_to_rank

log = logging.getLogger(__name__)
BEAT_S = 0.1
#: Ranks wait for each other so many times longer than the driver for them: it can tell who hangs, and is to be first.
LAST_TO_GIVE_UP = 2.0
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serve until the driver is gone."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal; the driver decides
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    wait_briefly()  # before torch brings OpenMP
    if SPARE in sys.argv:
        _import_what_computes()
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
        rank.run()
    except DriverGone:
        pass
    except BaseException as error:
        broken = broken_by(error, rank.step if rank is not None else 0)
        if error_of(broken) is None:  # else its driver raises it, and says all
            log.exception("rank %d ends", start.rank)
        with suppress(OSError):
            connection.send(broken)
        return 1
    finally:
        sys.stderr.flush()
        if rank is not None:
            rank.leave()
    return 0


def _import_what_computes() -> None:
    """Takes seconds, which are spent before they count."""
    for module in ("engine.model_start", "engine.rank_facts", "engine.kernels.shared_group"):
        importlib.import_module(module)


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
        if start.config.device != "cpu":
            os.environ[VISIBLE] = visible_to_rank(start.gpu, os.environ)  # before torch looks for devices
        import torch

        from engine.checkpoint import read_checkpoint
        from engine.device_choice import choose_device
        from engine.kernels.library import load_kernels
        from engine.rank_part import RankPart
        from parallel.layout import RankLayout
        from parallel.process_group import Progress

        torch.set_num_threads(start.num_threads)
        self._place = Progress()
        self._device = choose_device(start.config.device)
        self._kernels = load_kernels() if self._device.type == "cpu" else None
        self._part = RankPart(RankLayout(start.tensor_parallel, start.pipeline_parallel), start.rank)
        self._checkpoint = read_checkpoint(Path(start.folder), start.model)
        self._generation = start.generation
        self._loaded: Loaded | None = None
        self._model: Any = None
        self._cache: Any = None
        self._groups: Any = None
        self._runner: Any = None
        self._computing = threading.Event()

    @property
    def step(self) -> int:
        """Number of the step that is or was computed last."""
        return self._place.step

    def leave(self) -> None:
        """Wait for no other rank any more."""
        if self._groups is not None:
            self._groups.abort()

    def run(self) -> None:
        """Compute in one generation of the group after another. Raises `DriverGone` at the end."""
        threading.Thread(target=self._report, daemon=True).start()
        while True:
            self._meet()
            self._get_ready()
            self._generation = self._serve().generation

    def _meet(self) -> None:
        """Say what this rank is, join the others by the way that the driver has chosen, and measure it."""
        from engine.rank_facts import read_facts

        facts = read_facts(self._start, self._checkpoint, self._device, self._kernels)
        self._connection.send(Here(self._generation, facts))
        while not isinstance(call := self._connection.receive(), Meet):
            self._connection.send(Pong(time.time()))
        from engine.kernels.shared_group import join_shared_memory
        from parallel.preflight_facts import Transport
        from parallel.preflight_probe import measure_rank
        from parallel.process_group import addresses_by_interface, join_groups, nccl_environment, reach_store

        start, layout = self._start, self._part.layout
        mine = call.tensor[layout.position(start.rank).pp_rank]
        timeout_s = LAST_TO_GIVE_UP * start.timeout_s
        waits: dict[str, Any] = {"timeout_s": timeout_s, "progress": self._place}
        by_memory = None
        if mine is Transport.MEMORY and self._kernels is not None:
            by_memory = partial(join_shared_memory, self._kernels, **waits)
        if mine is Transport.NCCL:
            for name, value in nccl_environment(start.address, timeout_s, addresses_by_interface()).items():
                os.environ.setdefault(name, value)
        store = reach_store(start.host, start.store_port, self._generation, start.timeout_s)
        self._groups = join_groups(
            store, layout, start.rank, host=start.address, transport=call.pipe, device=self._device,
            join_tensor_group=by_memory, **waits,
        )  # fmt: skip
        measures_mates = call.is_rehearsal or mine is not Transport.NCCL  # each pair would keep memory of the GPU
        speeds = measure_rank(self._groups, layout, start.rank, self._device, measures_mates=measures_mates)
        self._connection.send(Met(speeds))

    def _get_ready(self) -> None:
        """The part of the model, when all have met; then the cache, when all have loaded."""
        from engine.model_start import build_cache, build_runner

        self._connection.receive()
        self._loaded = self._loaded or self._load()
        self._connection.send(self._loaded)
        order: Allocate = self._connection.receive()  # comes when all have loaded
        self._part.connect(self._model.module, self._groups)
        config = self._start.config
        if self._cache is None:
            self._cache = build_cache(self._model, config, order.num_blocks)
        else:
            self._cache.clear()
        self._runner = build_runner(
            self._model, self._cache, self._kernels, config, max_model_len=order.max_model_len, cores=self._cores
        )
        self._connection.send(Ready(self._runner.attention_name))

    def _load(self) -> Loaded:
        from engine.model_start import count_fitting_blocks, load_part

        config = self._start.config
        loaded, limit = load_part(self._checkpoint, config, self._device, self._kernels, self._part)
        num_blocks = count_fitting_blocks(loaded, config, limit, self._start.num_sharing)
        weights = (tensor.nbytes for tensor in (*loaded.module.parameters(), *loaded.module.buffers()))
        dtype = str(loaded.dtype).removeprefix("torch.")
        self._model = loaded
        return Loaded(dtype, str(self._device), loaded.vocab_size, limit, num_blocks, sum(weights))

    def _serve(self) -> Abandon:
        """Compute what comes until the group is lost, and leave it. Raises `DriverGone`."""
        end: Any = self._compute_plans()
        self._groups = self._runner = None
        self._part.let_go()
        gc.collect()  # with the last reference to a gloo group, those that wait for this rank in it go free
        if isinstance(end, Broken):
            self._connection.send(end)
        while not isinstance(end, Abandon):
            end = self._connection.receive()
        return end

    def _compute_plans(self) -> Abandon | Broken:
        """Until the driver gives the group up, or a collective fails."""
        from parallel.process_group import CollectiveFailed

        runner, place, connection, computing = self._runner, self._place, self._connection, self._computing
        samples = runner.samples
        while isinstance(order := connection.receive(), Execute):
            place.step = order.plan.step
            computing.set()
            try:
                runner.learn_tokens(order.sampled)
                result = runner.execute(order.plan)
            except CollectiveFailed as error:
                return broken_by(error, place.step)
            finally:
                computing.clear()
            if samples:
                connection.send(Done(result))
        return cast(Abandon, order)

    def _report(self) -> None:
        """Beat while steps are computed and once afterwards, and hear whether they are still of use."""
        while True:
            self._computing.wait()
            time.sleep(BEAT_S)
            try:
                self._beat()
            except OSError:
                os._exit(0)  # the driver is gone: nothing else ends the wait for a stage that has not heard of it

    def _beat(self) -> None:
        place, is_idle, groups, runner = self._place, not self._computing.is_set(), self._groups, self._runner
        if runner is not None:
            count = runner.progress.count
            self._connection.send(Beat(place.step, count, place.collective, place.inside, is_idle))
            if groups is not None and self._connection.is_abandoned():
                groups.abort()


if __name__ == "__main__":
    sys.exit(main())
