"""From a model's name to an engine that is ready: download, compile, load, warm up, each timed and reported."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import torch
import transformers

from engine.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from engine.config import EngineConfig, EngineInfo
from engine.core import EngineCore
from engine.errors import BadCheckpoint, ConfigError
from engine.kernels.fuse import fuse_modules
from engine.kernels.library import Kernels, load_kernels
from engine.kernels.linear import pack_linears
from engine.kv_cache import KVCache, bytes_per_token, count_blocks, fit_model_len, free_memory
from engine.model_loader import LoadedModel, choose_device, choose_dtype, load_model, model_config, position_limit
from engine.model_runner import ModelRunner
from engine.scheduler import Scheduler
from engine.warm_up import measure_patience, warm_up
from parallel.cores import CoreShare

log = logging.getLogger(__name__)

#: Called with (phase, 0.0) when a phase begins and with (phase, its seconds) when it has ended.
Progress = Callable[[str, float], object]


class Phases:
    """Times the phases of one start."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Report that `name` begins, and how long it took once it has ended."""
        if self._progress is not None:
            self._progress(name, 0.0)
        started = time.perf_counter()
        yield
        self.seconds[name] = max(0.001, round(time.perf_counter() - started, 3))  # 0 means that it has only begun
        log.info("%s took %.1f s", name, self.seconds[name])
        if self._progress is not None:
            self._progress(name, self.seconds[name])


def start_engine(
    model: str,
    config: EngineConfig,
    *,
    cores: CoreShare | None = None,
    num_replicas: int = 1,
    progress: Progress | None = None,
) -> tuple[EngineCore, EngineInfo]:
    """Load `model` (a folder or a hub id) and return its engine, warm, with nothing running.

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
            loaded, limit = _load(checkpoint, config, device, kernels)
            runner, info = _build(checkpoint, loaded, config, limit, num_replicas, kernels, cores)
        with phases.phase("warm_up"):
            if not warm_up(runner, info, config.max_batched_tokens):
                raise BadCheckpoint(
                    model, f"its logits are not finite in {info.dtype}: use dtype float32, or check the weights"
                )
            measure_patience(runner, info, config.max_batched_tokens, runner.progress)
    info = msgspec.structs.replace(info, startup_s=phases.seconds)
    return EngineCore(Scheduler(config, info), runner, runner.progress), info


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


def _load(
    checkpoint: Checkpoint, config: EngineConfig, device: torch.device, kernels: Kernels | None
) -> tuple[LoadedModel, int]:
    """The model in its final form, and the longest sequence it can hold."""
    described = model_config(checkpoint)
    limit = position_limit(checkpoint, described)
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(
            "engine.max_model_len", config.max_model_len, f"the model holds {limit} tokens: lower it to {limit} or less"
        )
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    dtype = choose_dtype(config.dtype, checkpoint, device)
    loaded = load_model(checkpoint, described, dtype=dtype, device=device)
    if kernels is not None and dtype is torch.bfloat16:
        fused = fuse_modules(loaded.module, kernels)
        packed = pack_linears(loaded.module, kernels)
        log.info("packed %d linear layers, fused %s, left %s", packed, fused.replaced, fused.refused)
    return loaded, limit


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
    device, dtype = loaded.device, loaded.dtype
    num_blocks = count_blocks(
        config,
        bytes_per_token(loaded.layers, dtype) * config.block_size,
        max_model_len=config.max_model_len or limit,
        free_bytes=free_memory(device),
        device_type=device.type,
        num_replicas=num_replicas,
    )
    max_model_len = fit_model_len(config, model_limit=limit, num_blocks=num_blocks)
    cache = KVCache(loaded.layers, num_blocks=num_blocks + 1, block_size=config.block_size, dtype=dtype, device=device)
    runner = ModelRunner(
        loaded, cache, kernels, max_num_seqs=config.max_num_seqs, max_model_len=max_model_len, cores=cores
    )
    log.info("%d KV blocks of %d tokens, %s attention", num_blocks, config.block_size, runner.attention_name)
    info = EngineInfo(
        model_path=str(checkpoint.path),
        architecture=checkpoint.architecture,
        weights_revision=checkpoint.weights_revision,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        vocab_size=loaded.vocab_size,
        max_model_len=max_model_len,
        block_size=config.block_size,
        num_blocks=num_blocks,
        max_num_seqs=config.max_num_seqs,
        eos_token_ids=checkpoint.eos_token_ids,
    )
    return runner, info
