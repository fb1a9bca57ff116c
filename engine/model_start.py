"""What each process that computes does at its start: load its part of the model, say what fits, build its runner."""

import logging
import sys

import torch
import transformers

from engine.checkpoint import Checkpoint
from engine.config import EngineConfig, Offload
from engine.errors import ConfigError
from engine.kernels.fuse import use_kernels
from engine.kernels.library import Kernels
from engine.kv_cache import KVCache, bytes_per_token, count_blocks, free_memory
from engine.model_loader import LoadedModel, choose_dtype, load_model, model_config, position_limit
from engine.model_runner import ModelRunner
from engine.offload import load_offloaded
from engine.rank_part import RankPart
from parallel.cores import CoreShare

log = logging.getLogger(__name__)


def load_part(
    checkpoint: Checkpoint, config: EngineConfig, device: torch.device, kernels: Kernels | None, part: RankPart
) -> tuple[LoadedModel, int]:
    """The model, or a rank's part of it, in its final form, and the longest sequence it can hold."""
    described = model_config(checkpoint)
    limit = position_limit(checkpoint, described)
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(
            "engine.max_model_len", config.max_model_len, f"the model holds {limit} tokens: lower it to {limit} or less"
        )
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    dtype = choose_dtype(config.dtype, checkpoint, device)
    if dtype is not torch.bfloat16:
        kernels = None
    if config.offload is not Offload.NONE:
        return load_offloaded(
            checkpoint, described, config, dtype=dtype, device=device, kernels=kernels, part=part
        ), limit
    loaded = load_model(checkpoint, described, dtype=dtype, device=device, part=part)
    if kernels is not None:
        use_kernels(loaded.module, kernels)
    return loaded, limit


def count_fitting_blocks(loaded: LoadedModel, config: EngineConfig, limit: int, num_sharing: int) -> int:
    """KV blocks that this process has room for, beside the others of the `num_sharing` engines on its host."""
    return count_blocks(
        config,
        bytes_per_token(loaded.layers, loaded.dtype) * config.block_size,
        max_model_len=config.max_model_len or limit,
        free_bytes=free_memory(loaded.device),
        device_type=loaded.device.type,
        num_replicas=num_sharing,
    )


def build_cache(loaded: LoadedModel, config: EngineConfig, num_blocks: int) -> KVCache:
    """The cache of `num_blocks` blocks."""
    return KVCache(
        loaded.layers,
        num_blocks=num_blocks + 1,
        block_size=config.block_size,
        dtype=loaded.dtype,
        device=loaded.device,
        first_layer=loaded.first_layer,
    )


def build_runner(
    loaded: LoadedModel,
    cache: KVCache,
    kernels: Kernels | None,
    config: EngineConfig,
    *,
    max_model_len: int,
    cores: CoreShare | None,
) -> ModelRunner:
    """The runner around a model and its cache. A rank has met its group: they try together what they can do."""
    runner = ModelRunner(
        loaded, cache, kernels, max_num_seqs=config.max_num_seqs, max_model_len=max_model_len, cores=cores
    )
    num_blocks = cache.num_blocks - 1
    log.info("%d KV blocks of %d tokens, %s attention", num_blocks, config.block_size, runner.attention_name)
    return runner
