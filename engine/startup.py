"""From a model's name to an engine that is ready: download, compile, load, warm up, each timed and reported."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import torch

from engine.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from engine.config import EngineConfig, EngineInfo
from engine.core import EngineCore, StepExecutor
from engine.device_choice import choose_device, device_of_ranks
from engine.errors import BadCheckpoint
from engine.fit_check import check_fit
from engine.kernels.library import Kernels, load_kernels
from engine.kv_cache import fit_model_len
from engine.model_loader import LoadedModel
from engine.model_runner import ModelRunner
from engine.model_start import build_cache, build_runner, count_fitting_blocks, load_part
from engine.phases import Phases, Progress
from engine.rank_part import RankPart
from engine.rank_rebuild import RankRebuild
from engine.rank_spawn import RankSpawner, on_this_host
from engine.rank_startup import start_rank_group
from engine.scheduler import Scheduler
from engine.step_progress import StepProgress
from engine.warm_up import measure_patience, warm_up
from parallel.cores import CoreShare
from parallel.layout import RankLayout

RANK_TIMEOUT_S = 10.0  #: see `rank_timeout_s` of `cluster.config.ModelConfig`


def start_engine(
    model: str,
    config: EngineConfig,
    *,
    cores: CoreShare | None = None,
    num_replicas: int = 1,
    progress: Progress | None = None,
) -> tuple[EngineCore, EngineInfo]:
    """Load `model` (a folder or a hub id) in this process and return its engine, warm, with nothing running.

    `cores` are those the engine computes on (default: those of this process), `num_replicas` the engines of this
    host that share its memory. Raises `ModelRefused` or `ConfigError`. The engine may be driven by any one thread.
    """
    phases = Phases(progress)
    with _on_cores(cores, config):
        with phases.phase("download"):
            path = find_checkpoint(model)
        with phases.phase("compile"):
            device = choose_device(config.device)
            kernels = load_kernels() if device.type == "cpu" else None
        with phases.phase("load"):
            checkpoint = read_checkpoint(path, model)
            check_fit(checkpoint, config, RankLayout(), device)
            loaded, limit = load_part(checkpoint, config, device, kernels, RankPart(RankLayout(), 0))
            runner, info = _build(checkpoint, loaded, config, limit, num_replicas, kernels, cores)
        with phases.phase("warm_up"):
            _warm_up(runner, info, model, config, runner.progress)
    info = msgspec.structs.replace(info, startup_s=phases.seconds)
    return EngineCore(Scheduler(config, info), runner, runner.progress), info


def start_engine_of_ranks(
    model: str,
    config: EngineConfig,
    layout: RankLayout,
    *,
    spawner: RankSpawner | None = None,
    rank_timeout_s: float = RANK_TIMEOUT_S,
    num_spares: int = 0,
    progress: Progress | None = None,
) -> tuple[EngineCore, EngineInfo]:
    """The same with a process for each rank of `layout`, started by `spawner` (default: on any cores of this host).

    `num_spares`: more processes on each host, ready to take the place of a lost rank. The executor's `close` ends all.
    Raises `RankLost` too.
    """
    began = time.monotonic()
    spawner = spawner or on_this_host(layout)
    phases = Phases(progress)
    with phases.phase("download"):
        path = spawner.find_model(model)
    with phases.phase("compile"):
        if device_of_ranks(config.device).type == "cpu":
            load_kernels()  # once, not in each rank
    checkpoint = read_checkpoint(path, model)
    group, starter, info = start_rank_group(checkpoint, config, layout, spawner, rank_timeout_s, phases)
    try:
        with phases.phase("warm_up"):
            _warm_up(group, info, model, config, group.progress)
        info = msgspec.structs.replace(info, startup_s=phases.seconds)
        start_s = time.monotonic() - began
        rebuild = RankRebuild(group, starter, info, num_spares=num_spares, start_s=start_s)
    except BaseException:
        group.close()
        raise
    return EngineCore(Scheduler(config, info), group, group.progress, rebuild), info


def _warm_up(
    executor: StepExecutor, info: EngineInfo, model: str, config: EngineConfig, progress: StepProgress
) -> None:
    if not warm_up(executor, info, config.max_batched_tokens):
        raise BadCheckpoint(
            model, f"its logits are not finite in {info.dtype}: use dtype float32, or check the weights"
        )
    measure_patience(executor, info, config.max_batched_tokens, progress)


@contextmanager
def _on_cores(cores: CoreShare | None, config: EngineConfig) -> Iterator[None]:
    """Compute on these cores, with one thread on each, and give the calling thread its freedom back afterwards."""
    if config.threads is not None or cores is not None:
        torch.set_num_threads(config.threads or (cores.num_threads if cores else 1))
    before = os.sched_getaffinity(0) if cores is not None and hasattr(os, "sched_getaffinity") else None
    if cores is not None:
        cores.pin_thread()
    try:
        yield
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)


def _build(
    checkpoint: Checkpoint,
    loaded: LoadedModel,
    config: EngineConfig,
    limit: int,
    num_replicas: int,
    kernels: Kernels | None,
    cores: CoreShare | None,
) -> tuple[ModelRunner, EngineInfo]:
    """The cache, as large as memory allows, and the runner around it."""
    num_blocks = count_fitting_blocks(loaded, config, limit, num_replicas)
    max_model_len = fit_model_len(config, model_limit=limit, num_blocks=num_blocks)
    cache = build_cache(loaded, config, num_blocks)
    runner = build_runner(loaded, cache, kernels, config, max_model_len=max_model_len, cores=cores)
    info = EngineInfo(
        model_path=str(checkpoint.path),
        architecture=checkpoint.architecture,
        weights_revision=checkpoint.weights_revision,
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        vocab_size=loaded.vocab_size,
        max_model_len=max_model_len,
        block_size=config.block_size,
        num_blocks=num_blocks,
        max_num_seqs=config.max_num_seqs,
        eos_token_ids=checkpoint.eos_token_ids,
    )
    return runner, info
