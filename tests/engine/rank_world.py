"""Ranks as threads of this process: real parts of a model, real gloo groups, no processes."""

import queue
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engine.checkpoint import read_checkpoint
from engine.config import EngineConfig, EngineInfo
from engine.core import EngineCore
from engine.kernels.library import Kernels
from engine.kernels.shared_group import join_shared_memory
from engine.model_loader import LoadedModel
from engine.model_runner import ModelRunner
from engine.model_start import build_cache, build_runner, load_part
from engine.rank_part import RankPart
from engine.scheduler import Scheduler
from engine.step import StepPlan, StepResult
from parallel.layout import RankLayout
from parallel.preflight_facts import Transport
from parallel.process_group import Progress, join_groups

CPU = torch.device("cpu")
TIMEOUT_S = 20.0


class ThreadedRanks:
    """`StepExecutor` over ranks, one thread each; `build` makes a rank's runner once it is connected."""

    def __init__(
        self,
        models: list[LoadedModel],
        build: Callable[[LoadedModel], ModelRunner],
        shared: Kernels | None,
        transport: Transport,
    ) -> None:
        self._build, self._shared, self._transport = build, shared, transport
        self._store = dist.HashStore()
        self._plans: list[queue.Queue[tuple[StepPlan, list[tuple[int, int]]] | None]] = [queue.Queue() for _ in models]
        self._results: queue.Queue[StepResult | Exception] = queue.Queue()
        self._sampled: list[tuple[int, int]] = []
        self._threads = [
            threading.Thread(target=self._run, args=(rank, model), daemon=True) for rank, model in enumerate(models)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, rank: int, model: LoadedModel) -> None:
        try:
            part = model.part
            waits: dict[str, Any] = {"timeout_s": TIMEOUT_S, "progress": Progress()}
            by_memory = partial(join_shared_memory, self._shared, **waits) if self._shared else None
            groups = join_groups(
                self._store, part.layout, rank, host="127.0.0.1", transport=self._transport, device=model.device,
                join_tensor_group=by_memory, **waits,
            )  # fmt: skip
            part.connect(model.module, groups)
            runner = self._build(model)
            while (order := self._plans[rank].get()) is not None:
                plan, sampled = order
                runner.learn_tokens(sampled)
                result = runner.execute(plan)
                if runner.samples:
                    self._results.put(result)
        except Exception as error:
            self._results.put(error)

    def execute(self, plan: StepPlan) -> StepResult:
        self.submit(plan)
        return self.collect()

    def submit(self, plan: StepPlan) -> None:
        for plans in self._plans:
            plans.put((plan, self._sampled))
        self._sampled = []

    def collect(self) -> StepResult:
        result = self._results.get(timeout=TIMEOUT_S)
        if isinstance(result, Exception):
            raise result
        self._sampled += [(token.sequence_id, token.token_id) for token in result.sampled]
        return result

    def close(self) -> None:
        for plans in self._plans:
            plans.put(None)
        for thread in self._threads:
            thread.join(TIMEOUT_S)


def threaded_engine(
    folder: Path,
    config: EngineConfig,
    layout: RankLayout,
    *,
    kernels: Kernels | None = None,
    shared: Kernels | None = None,
    device: torch.device = CPU,
    transport: Transport = Transport.GLOO,
) -> EngineCore:
    """An engine whose ranks are threads; they compute with `kernels`, and with `shared` they sum in shared memory.

    All are on one `device`, so that `transport` is not NCCL.
    """
    checkpoint = read_checkpoint(folder)
    parts = [RankPart(layout, rank) for rank in range(layout.world_size)]
    loaded = [load_part(checkpoint, config, device, kernels, part) for part in parts]
    max_model_len = config.max_model_len or loaded[0][1]
    assert config.kv_cache_tokens is not None
    num_blocks = config.kv_cache_tokens // config.block_size
    info = EngineInfo(
        model_path=str(folder),
        architecture=checkpoint.architecture,
        weights_revision=checkpoint.weights_revision,
        dtype=str(loaded[0][0].dtype).removeprefix("torch."),
        device=str(device),
        vocab_size=loaded[0][0].vocab_size,
        max_model_len=max_model_len,
        block_size=config.block_size,
        num_blocks=num_blocks,
        max_num_seqs=config.max_num_seqs,
        max_steps_in_flight=layout.pipeline_parallel,
    )

    def build(model: LoadedModel) -> ModelRunner:
        cache = build_cache(model, config, num_blocks)
        return build_runner(model, cache, kernels, config, max_model_len=max_model_len, cores=None)

    executor = ThreadedRanks([model for model, _ in loaded], build, shared, transport)
    return EngineCore(Scheduler(config, info), executor)
