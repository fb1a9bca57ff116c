"""Refuses a model that memory cannot hold before the first weight is read, with the numbers that `manta plan` shows."""

from collections.abc import Callable

import torch

from engine.checkpoint import Checkpoint
from engine.config import EngineConfig, Offload
from engine.errors import ConfigError
from engine.kernels.library import load_kernels
from engine.kv_cache import free_memory
from engine.layer_stream import NUM_SLOTS
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
    stays = _what_stays(checkpoint, model.dtype, device, config.offload)
    stages = [stage for stage in model.stages(size, count) for _ in range(size)]
    if config.offload is Offload.CPU:
        _check_host(stages, device)
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
    remedy = "lower it" if cache_is_the_reason else _remedy(config.offload, device)
    raise ConfigError(
        key,
        value,
        f"a rank needs up to {size_text(max(weights))} for weights in {model.dtype} and {size_text(max(caches))} for "
        f"{tokens:,} tokens of KV cache{shared}; {where} has {size_text(free)} free: {remedy} "
        f"(`manta plan {checkpoint.name}` shows what fits)",
    )


def _what_stays(
    checkpoint: Checkpoint, dtype: str, device: torch.device, offload: Offload
) -> Callable[[StageSize], int]:
    """Weights of a rank that must stay in memory, in bytes.

    On a CPU, weights that are used as they stand in their files are pages of these, which come and go; only the layers
    that the kernels pack, and what is converted, are copies. Of layers that are streamed a few are there at a time.
    """
    are_copies = device.type != "cpu" or dtype != checkpoint.dtype
    if offload is not Offload.NONE:
        return lambda stage: _in_slots(stage) + (stage.num_bytes - _in_layers(stage) if are_copies else 0)
    if are_copies:
        return lambda stage: stage.num_bytes
    if dtype == "bfloat16" and load_kernels() is not None:
        return _in_layers
    return lambda stage: 0


def _in_layers(stage: StageSize) -> int:
    return sum(layer.num_bytes for layer in stage.layers)


def _in_slots(stage: StageSize) -> int:
    return min(NUM_SLOTS, len(stage.layers)) * max((layer.num_bytes for layer in stage.layers), default=0)


def _remedy(offload: Offload, device: torch.device) -> str:
    remedies = "free memory, or take more devices, a smaller model or dtype"
    if offload is not Offload.NONE:
        return remedies
    return (
        f"{remedies}, or have its layers streamed: engine.offload {'nvme' if device.type == 'cpu' else 'cpu or nvme'}"
    )


def _check_host(stages: list[StageSize], device: torch.device) -> None:
    """The host of the ranks must hold their layers; all ranks are on one."""
    if device.type == "cpu":
        raise ConfigError("engine.offload", "cpu", "the device is the CPU, whose memory this would be: nvme or none")
    needed, free = sum(_in_layers(stage) for stage in stages), free_memory(torch.device("cpu"))
    if needed > free:
        numbers = f"the layers take {size_text(needed)}, and the host has {size_text(free)} free"
        raise ConfigError("engine.offload", "cpu", f"{numbers}: use nvme, or free memory")


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
