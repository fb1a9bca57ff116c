"""The paged key and value tensors of one rank's layers, and how many blocks of them fit.

Block 0 is the null block: never given to a sequence, padding tokens read and write it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch

from engine.config import EngineConfig
from engine.errors import ConfigError

_CPU_LIMIT_BYTES = 4 << 30
_CACHE_LINE = 64
#: Memory limits of the control group the process runs in, version 2 and version 1: folder, limit, in use, prefix in
#: memory.stat of what it and its children hold.
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", ""),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps per token: a key and a value, each [num_kv_heads, head_dim]."""

    num_kv_heads: int
    head_dim: int


class KVCache:
    """`keys[layer]` and `values[layer]`, each [num_blocks, num_kv_heads, block_size, head_dim], zero at first.

    Index 0 is the first layer of this rank's pipeline stage, number `first_layer` of the model.
    """

    def __init__(
        self,
        layers: list[LayerShape],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        first_layer: int = 0,
    ) -> None:
        self.layers = layers
        self.first_layer = first_layer
        self.num_blocks = num_blocks  #: the null block included
        self.block_size = block_size
        shapes = [(num_blocks, layer.num_kv_heads, block_size, layer.head_dim) for layer in layers]
        self.keys = [_zeros(shape, dtype, device) for shape in shapes]
        self.values = [_zeros(shape, dtype, device) for shape in shapes]

    def clear(self) -> None:
        """As it was at first."""
        for tensor in (*self.keys, *self.values):
            tensor.zero_()


def bytes_per_token(layers: list[LayerShape], dtype: torch.dtype) -> int:
    """Cache memory that one token takes over all layers."""
    return sum(2 * layer.num_kv_heads * layer.head_dim * dtype.itemsize for layer in layers)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device; on a CPU the control group's limit counts too."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free: int = psutil.virtual_memory().available
    for folder, limit_name, usage_name, prefix in _CGROUPS:
        limit_file, usage_file = folder / limit_name, folder / usage_name
        if limit_file.exists() and usage_file.exists() and (limit := limit_file.read_text().strip()) != "max":
            used = int(usage_file.read_text()) - _cached_file_bytes(folder / "memory.stat", prefix)
            return min(free, max(0, int(limit) - used))
    return free


def _cached_file_bytes(stat: Path, prefix: str) -> int:
    """What a control group holds of files that were read or written: it is given up when memory is asked for."""
    if not stat.exists():
        return 0
    numbers = dict(line.split() for line in stat.read_text().splitlines())
    return sum(int(numbers.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))


def count_blocks(
    config: EngineConfig, block_bytes: int, *, max_model_len: int, free_bytes: int, device_type: str, num_replicas: int
) -> int:
    """Blocks that sequences can use (the null block comes on top): from `kv_cache_tokens`, else from memory."""
    if config.kv_cache_tokens is not None:
        return config.kv_cache_tokens // config.block_size
    share = int(free_bytes * config.kv_cache_memory)
    if device_type == "cpu":
        share = min(share // num_replicas, _CPU_LIMIT_BYTES)
    blocks_of_one = -(-max_model_len // config.block_size)
    return min(share // block_bytes - 1, blocks_of_one * config.max_num_seqs)


def fit_model_len(config: EngineConfig, *, model_limit: int, num_blocks: int) -> int:
    """The longest sequence the engine takes: what was asked for, or as much of the model's limit as fits."""
    capacity = num_blocks * config.block_size
    if capacity < 1:
        raise ConfigError(
            "engine.kv_cache_memory", config.kv_cache_memory, "not one KV block fits: free memory or raise the share"
        )
    if config.max_model_len is None:
        return min(model_limit, capacity)
    if config.max_model_len > capacity:
        raise ConfigError(
            "engine.max_model_len",
            config.max_model_len,
            f"the KV cache holds {capacity} tokens, less than one such sequence: lower it to {capacity}, "
            "or raise kv_cache_tokens or kv_cache_memory",
        )
    return config.max_model_len


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy asks for huge pages. Zeroing touches them all now, with all threads: a page's first use is dear, and memory
    # that is not there should be missed at the start.
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(num_bytes + _CACHE_LINE, dtype=np.uint8)
    skip = -memory.ctypes.data % _CACHE_LINE
    return torch.from_numpy(memory[skip : skip + num_bytes]).zero_().view(dtype).view(shape)
