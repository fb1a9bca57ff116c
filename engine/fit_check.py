"""Refuses a model that memory cannot hold before the first weight is read, with the numbers that `manta plan` shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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

_CACHE_KEY = "engine.kv_cache_tokens"
_GRID_KEY = "tensor_parallel x pipeline_parallel"


class Room(NamedTuple):
    """Memory that some ranks share; `where` says whose it is."""

    where: str
    free_bytes: int
    ranks: Sequence[int]
    is_gpu: bool = False


@dataclass(frozen=True)
class Fit:
    """What each rank of a replica needs at least, in bytes; `key` and `value`: the setting that asks for a cache."""

    name: str
    layout: RankLayout
    dtype: str
    weights: list[int]
    caches: list[int]
    offloaded: list[int]  #: to its host's memory
    remedy: str  #: where the weights alone are too much
    key: str
    value: object
    tokens: int

    def check(self, rooms: Sequence[Room], hosts: Sequence[Room]) -> None:
        """Raise `ConfigError` where ranks cannot hold their weights and the least cache asked for.

        `rooms` are where they compute, `hosts` the memories of their hosts.

        What computing takes beside is not counted, and other replicas only by what they hold already: so nothing that
        would run is refused.
        """
        for room in rooms:
            if room.is_gpu and len(room.ranks) > 1 and self.key != _CACHE_KEY:
                remedy = "give a number, or each rank a GPU of its own"
                raise ConfigError(_CACHE_KEY, None, f"ranks share a GPU, and each would take its free memory: {remedy}")
            if sum(self.weights[rank] + self.caches[rank] for rank in room.ranks) > room.free_bytes:
                raise self._refusal(room)
        for host in hosts:
            if (needed := sum(self.offloaded[rank] for rank in host.ranks)) > host.free_bytes:
                numbers = f"the layers take {size_text(needed)}, and {host.where} has {size_text(host.free_bytes)} free"
                raise ConfigError("engine.offload", "cpu", f"{numbers}: use nvme, or free memory")

    def _refusal(self, room: Room) -> ConfigError:
        weights, caches = ([held[rank] for rank in room.ranks] for held in (self.weights, self.caches))
        key, value, remedy = self.key, self.value, "lower it"
        if not key or sum(weights) > room.free_bytes:
            key, value = _GRID_KEY, f"{self.layout.tensor_parallel} x {self.layout.pipeline_parallel}"
            remedy = self.remedy
        needed, count = sum(weights) + sum(caches), len(weights)
        of_ranks = "all" if count == self.layout.world_size else "its"
        shared = f", {size_text(needed)} for {of_ranks} {count} ranks" if count > 1 else ""
        return ConfigError(
            key,
            value,
            f"a rank needs up to {size_text(max(weights))} for weights in {self.dtype} and {size_text(max(caches))} "
            f"for {self.tokens:,} tokens of KV cache{shared}; {room.where} has {size_text(room.free_bytes)} free: "
            f"{remedy} (`manta plan {self.name}` shows what fits)",
        )


def check_fit(checkpoint: Checkpoint, config: EngineConfig, layout: RankLayout, device: torch.device) -> None:
    """`Fit.check` for ranks that are all in this host's memory, or on this device. Raises `ConfigError`."""
    where = "this host" if device.type == "cpu" else str(device)
    ranks = range(layout.world_size)
    room, host = Room(where, free_memory(device), ranks), Room("this host", free_memory(torch.device("cpu")), ranks)
    measure_fit(checkpoint, config, layout, device).check([room], [host])


def measure_fit(checkpoint: Checkpoint, config: EngineConfig, layout: RankLayout, device: torch.device) -> Fit:
    """What ranks on such devices need. Raises `ConfigError` for a grid into which the model cannot be cut."""
    dtype = choose_dtype(config.dtype, checkpoint, device)
    size, count = layout.tensor_parallel, layout.pipeline_parallel
    model = measure_model(checkpoint, model_config(checkpoint), dtype, tensor_sizes=(size,), stage_counts=(count,))
    for refusal in (*model.tensor_refusals.values(), *model.pipeline_refusals.values()):
        raise ConfigError(_GRID_KEY, f"{size} x {count}", refusal)
    key, value, tokens = _least_cache(config)
    stays = _what_stays(checkpoint, model.dtype, device, config.offload)
    stages = [stage for stage in model.stages(size, count) for _ in range(size)]
    if config.offload is Offload.CPU and device.type == "cpu":
        raise ConfigError("engine.offload", "cpu", "the device is the CPU, whose memory this would be: nvme or none")
    offloaded = [_in_layers(stage) if config.offload is Offload.CPU else 0 for stage in stages]
    weights = [stays(stage) for stage in stages]
    caches = [tokens * stage.kv_bytes for stage in stages]
    remedy = _remedy(config.offload, device)
    return Fit(checkpoint.name, layout, model.dtype, weights, caches, offloaded, remedy, key, value, tokens)


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


def refused_layout(error: LayoutError, layout: RankLayout) -> ConfigError:
    """A grid that cannot be, as an error of the configuration."""
    return ConfigError(_GRID_KEY, f"{layout.tensor_parallel} x {layout.pipeline_parallel}", str(error))


def _least_cache(config: EngineConfig) -> tuple[str, object, int]:
    """The setting that asks for a cache, if any, and the tokens that must find room, with the null block."""
    block = config.block_size
    if config.kv_cache_tokens is not None:
        return _CACHE_KEY, config.kv_cache_tokens, (config.kv_cache_tokens // block + 1) * block
    if config.max_model_len is not None:
        return "engine.max_model_len", config.max_model_len, (-(-config.max_model_len // block) + 1) * block
    return "", None, 2 * block
