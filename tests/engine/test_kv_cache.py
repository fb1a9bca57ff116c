"""How large the cache becomes, and what is said when it cannot be large enough."""

import pytest
import torch

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.kv_cache import KVCache, LayerShape, bytes_per_token, count_blocks, fit_model_len, free_memory

CPU = torch.device("cpu")
GIB = 1 << 30


def test_layers_of_different_shapes_each_get_theirs() -> None:
    layers = [LayerShape(2, 16), LayerShape(4, 32)]
    cache = KVCache(layers, num_blocks=5, block_size=8, dtype=torch.bfloat16, device=CPU)
    assert [tuple(key.shape) for key in cache.keys] == [(5, 2, 8, 16), (5, 4, 8, 32)]
    assert all(key.dtype is torch.bfloat16 and key.is_contiguous() for key in cache.keys + cache.values)
    assert all(not key.any() and key.data_ptr() % 64 == 0 for key in cache.keys + cache.values)
    assert bytes_per_token(layers, torch.bfloat16) == 2 * 2 * (2 * 16 + 4 * 32)


def blocks(config: EngineConfig, **changes: object) -> int:
    facts = {"max_model_len": 1024, "free_bytes": 8 * GIB, "device_type": "cpu", "num_replicas": 1, **changes}
    return count_blocks(config, 1 << 20, **facts)  # type: ignore[arg-type]


def test_tokens_asked_for_are_tokens_given() -> None:
    assert blocks(EngineConfig(kv_cache_tokens=1000, block_size=32)) == 31


def test_memory_is_shared_between_replicas_and_capped_on_a_cpu() -> None:
    config = EngineConfig(block_size=32, kv_cache_memory=0.5, max_num_seqs=4096)
    assert blocks(config, free_bytes=6 * GIB) == 3 * 1024 - 1  # one block is the null block
    assert blocks(config, free_bytes=6 * GIB, num_replicas=3) == 1024 - 1
    assert blocks(config, free_bytes=64 * GIB) == 4 * 1024 - 1
    assert blocks(config, free_bytes=64 * GIB, device_type="cuda") == 32 * 1024 - 1


def test_never_more_than_every_sequence_at_full_length() -> None:
    assert blocks(EngineConfig(block_size=32, max_num_seqs=2), max_model_len=100) == 8


def test_the_model_length_is_what_fits_unless_one_was_asked_for() -> None:
    assert fit_model_len(EngineConfig(block_size=32), model_limit=4096, num_blocks=10) == 320
    assert fit_model_len(EngineConfig(block_size=32), model_limit=128, num_blocks=10) == 128
    assert fit_model_len(EngineConfig(block_size=32, max_model_len=300), model_limit=4096, num_blocks=10) == 300
    with pytest.raises(ConfigError, match=r"max_model_len = 321.*lower it to 320"):
        fit_model_len(EngineConfig(block_size=32, max_model_len=321), model_limit=4096, num_blocks=10)
    with pytest.raises(ConfigError, match="not one KV block fits"):
        fit_model_len(EngineConfig(), model_limit=4096, num_blocks=-1)


def test_free_memory_is_within_the_machine() -> None:
    assert 0 < free_memory(CPU) < 1 << 50
