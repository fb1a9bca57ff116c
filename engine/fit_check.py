"""Refuses a model that memory cannot hold before the first weight is read, with the numbers that `manta plan` shows."""

from collections.abc import Callable

import torch

from engine.checkpoint import Checkpoint
from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.kernels.library import load_kernels
from engine.kv_cache import free_memory
from engine.model_loader import choose_dtype, model_config
from engine.model_sizes import measure_model
from parallel.devices import size_text
from parallel.layout import LayoutError, RankLayout
from parallel.part_sizes import StageSize

_GRID_KEY = "tensor_parallel x pipeline_parallel"


def check_fit(checkpoint: Checkpoint, config: EngineConfig, layout: RankLayout, device: torch.device) -> None:
    """Raise `ConfigError` where the ranks of one replica cannot hold their weights and the least cache asked for.

    On a CPU all ranks share the host's free memory; elsewhere each has a device like `device`. What computing takes
    beside is not counted, and other replicas only by what they hold already: so nothing that would run is refused.
    """
    dtype = choose_dtype(config.dtype, checkpoint, device)
    size, count = layout.tensor_parallel, layout.pipeline_parallel
    model = measure_model(checkpoint, model_config(checkpoint), dtype, tensor_sizes=(size,), stage_counts=(count,))
    for refusal in (*model.tensor_refusals.values(), *model.pipeline_refusals.values()):
        raise ConfigError(_GRID_KEY, f"{size} x {count}", refusal)
    key, value, tokens = _least_cache(config)
    stays = _what_stays(checkpoint, model.dtype, device)
    stages = [stage for stage in model.stages(size, count) for _ in range(size)]
    weights = [stays(stage) for stage in stages]
    caches = [tokens * stage.kv_bytes for stage in stages]
    free, total = free_memory(device), sum if device.type == "cpu" else max
    needed = total(held + cache for held, cache in zip(weights, caches, strict=True))
    if needed <= free:
        return
    cache_is_the_reason = key and total(weights) <= free
    if not cache_is_the_reason:
        key, value = _GRID_KEY, f"{size} x {count}"
    where = "this host" if device.type == "cpu" else str(device)
    shared = f", {size_text(needed)} for all {len(stages)} ranks" if device.type == "cpu" and len(stages) > 1 else ""
    remedy = "lower it" if cache_is_the_reason else "free memory, or take more devices, a smaller model or dtype"
    raise ConfigError(
        key,
        value,
        f"a rank needs up to {size_text(max(weights))} for weights in {model.dtype} and {size_text(max(caches))} for "
        f"{tokens:,} tokens of KV cache{shared}; {where} has {size_text(free)} free: {remedy} "
        f"(`manta plan {checkpoint.name}` shows what fits)",
    )


def _what_stays(checkpoint: Checkpoint, dtype: str, device: torch.device) -> Callable[[StageSize], int]:
    """Weights of a rank that must stay in memory, in bytes.

    On a CPU, weights that are used as they stand in their files are pages of these, which come and go; only the layers
    that the kernels pack, and what is converted, are copies.
    """
    if device.type != "cpu" or dtype != checkpoint.dtype:
        return lambda stage: stage.num_bytes
    if dtype == "bfloat16" and load_kernels() is not None:
        return lambda stage: sum(layer.num_bytes for layer in stage.layers)
    return lambda stage: 0


def refused_layout(error: LayoutError, layout: RankLayout) -> ConfigError:
    """A grid that cannot be, as an error of the configuration."""
    return ConfigError(_GRID_KEY, f"{layout.tensor_parallel} x {layout.pipeline_parallel}", str(error))


def _least_cache(config: EngineConfig) -> tuple[str, object, int]:
    """The setting that asks for a cache, if any, and the tokens that must find room, with the null block."""
    block = config.block_size
    if config.kv_cache_tokens is not None:
        return "engine.kv_cache_tokens", config.kv_cache_tokens, (config.kv_cache_tokens // block + 1) * block
    if config.max_model_len is not None:
        return "engine.max_model_len", config.max_model_len, (-(-config.max_model_len // block) + 1) * block
    return "", None, 2 * block
