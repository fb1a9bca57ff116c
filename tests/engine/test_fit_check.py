"""What memory cannot hold is refused before it is loaded, with the numbers; whatever can run is not."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from engine import fit_check, kv_cache
from engine.checkpoint import Checkpoint, read_checkpoint
from engine.config import DType, EngineConfig, Offload
from engine.errors import ConfigError
from engine.fit_check import Room, check_fit, measure_fit
from engine.kernels.library import load_kernels
from engine.kv_cache import free_memory
from engine.rank_preflight import hosts_of, rooms_of
from parallel.layout import RankLayout
from tests.engine.tiny_models import save_tiny_model
from tests.parallel.test_preflight import alike, but

CPU = torch.device("cpu")
MIB = 1 << 20
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_key_value_heads": 4,
    "vocab_size": 2048,
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A Llama of 3.4 million numbers in float32: 6.5 MiB when converted to float16, with 2 KiB of cache a token."""
    return read_checkpoint(save_tiny_model("llama", tmp_path, **SIZES))


def check(checkpoint: Checkpoint, layout: RankLayout = RankLayout(), **settings: Any) -> None:  # noqa: B008
    check_fit(checkpoint, EngineConfig(**{"dtype": DType.FLOAT16, **settings}), layout, CPU)


@pytest.mark.parametrize("layout", [RankLayout(), RankLayout(2, 1), RankLayout(1, 2), RankLayout(2, 2)], ids=str)
def test_what_fits_is_not_refused(layout: RankLayout, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_check, "free_memory", lambda _: 8 * MIB)
    check(checkpoint, layout)
    check(checkpoint, layout, kv_cache_tokens=512)


@pytest.mark.parametrize("layout", [RankLayout(), RankLayout(2, 2)], ids=str)
def test_weights_that_do_not_fit(layout: RankLayout, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_check, "free_memory", lambda _: 5 * MIB)
    with pytest.raises(ConfigError, match=r"this host has 5\.0 MiB free") as refusal:
        check(checkpoint, layout)
    assert refusal.value.key == "tensor_parallel x pipeline_parallel"
    assert "float16" in refusal.value.remedy
    assert "engine.offload nvme" in refusal.value.remedy
    assert ("for all 4 ranks" in refusal.value.remedy) == (layout.world_size == 4)


def test_weights_that_stay_in_their_files_need_no_memory(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 as it stands in the file: its pages come and go."""
    monkeypatch.setattr(fit_check, "free_memory", lambda _: 1 * MIB)
    check(checkpoint, dtype=DType.FLOAT32)
    with pytest.raises(ConfigError, match=r"weights in float32 and 4\.1 MiB for 1,056 tokens"):
        check(checkpoint, dtype=DType.FLOAT32, kv_cache_tokens=1024)


@pytest.mark.skipif(load_kernels() is None, reason="no kernels on this machine")
def test_layers_that_are_packed_need_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo model: 5.6 of its 6.6 MiB are layers."""
    demo = read_checkpoint(Path(kv_cache.__file__).parent / "demo_model")
    monkeypatch.setattr(fit_check, "free_memory", lambda _: 5 * MIB)
    with pytest.raises(ConfigError, match=r"5\.6 MiB for weights in bfloat16"):
        check(demo, dtype=DType.BFLOAT16)


def test_of_streamed_layers_two_need_memory(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four layers of 2 MiB, and 1 MiB each for embedding and output layer."""
    monkeypatch.setattr(fit_check, "free_memory", lambda _: 7 * MIB)
    deep = read_checkpoint(save_tiny_model("llama", checkpoint.path / "deep", num_hidden_layers=4, **SIZES))
    check(deep, offload=Offload.NVME)
    with pytest.raises(ConfigError, match=r"10\.\d MiB for weights in float16"):
        check(deep)
    monkeypatch.setattr(fit_check, "free_memory", lambda _: 5 * MIB)
    with pytest.raises(ConfigError, match=r"6\.\d MiB for weights in float16") as refusal:
        check(deep, offload=Offload.NVME)
    assert "offload" not in refusal.value.remedy


def test_layers_in_the_memory_of_the_host_are_for_another_device(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"engine\.offload = 'cpu': the device is the CPU"):
        check(checkpoint, offload=Offload.CPU)
    monkeypatch.setattr(fit_check, "free_memory", lambda device: (3 if device.type == "cpu" else 8) * MIB)
    with pytest.raises(ConfigError, match=r"layers take 4\.\d MiB, and this host has 3\.0 MiB free: use nvme"):
        check_fit(
            checkpoint,
            EngineConfig(dtype=DType.FLOAT16, offload=Offload.CPU),
            RankLayout(),
            torch.device("cuda", 0),
        )


@pytest.mark.parametrize("key", ["kv_cache_tokens", "max_model_len"])
def test_a_cache_that_does_not_fit(key: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_check, "free_memory", lambda _: 8 * MIB)
    with pytest.raises(
        ConfigError, match=r"20\.1 MiB for 10,272 tokens of KV cache.*8\.0 MiB free: lower it"
    ) as refusal:
        check(checkpoint, **{key: 10_240})
    assert (refusal.value.key, refusal.value.value) == (f"engine.{key}", 10_240)


def test_a_grid_that_cannot_be(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="4 attention heads % tensor_parallel = 3") as refusal:
        check(checkpoint, RankLayout(3, 2))
    assert refusal.value.value == "3 x 2"


def test_cached_files_of_a_container_are_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("memory.max", "1000\n"),
        ("memory.current", "900\n"),
        ("memory.stat", "anon 300\nfile 600\ninactive_file 200\nactive_file 350\n"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(kv_cache, "_CGROUPS", ((tmp_path, "memory.max", "memory.current", ""),))
    assert free_memory(CPU) == 650
    (tmp_path / "memory.stat").unlink()
    assert free_memory(CPU) == 100


def test_ranks_that_share_a_gpu_need_a_cache_of_a_given_size(checkpoint: Checkpoint) -> None:
    layout, rooms = RankLayout(2, 1), [Room("a GPU", 1 << 40, (0, 1), is_gpu=True)]
    measure_fit(checkpoint, EngineConfig(kv_cache_tokens=512), layout, CPU).check(rooms, [])
    with pytest.raises(ConfigError, match=r"engine\.kv_cache_tokens = None: ranks share a GPU"):
        measure_fit(checkpoint, EngineConfig(max_model_len=64), layout, CPU).check(rooms, [])


def test_each_memory_is_checked_for_its_own_ranks(checkpoint: Checkpoint) -> None:
    fit = measure_fit(checkpoint, EngineConfig(dtype=DType.FLOAT16), RankLayout(1, 2), CPU)
    fit.check([Room("node-a", 8 * MIB, (0,)), Room("node-b", 8 * MIB, (1,))], [])
    with pytest.raises(ConfigError, match=r"node-b has 1\.0 MiB free"):
        fit.check([Room("node-a", 8 * MIB, (0,)), Room("node-b", 1 * MIB, (1,))], [])


def test_the_layers_of_each_host_are_in_its_memory(checkpoint: Checkpoint) -> None:
    """2 MiB each, on two hosts with room for 3, of whose GPUs each has plenty; not on one."""
    config = EngineConfig(dtype=DType.FLOAT16, offload=Offload.CPU)
    fit = measure_fit(checkpoint, config, RankLayout(1, 2), torch.device("cuda", 0))
    gpus = but(alike(2, device="cuda", host_free_bytes=3 * MIB), 0, device_id="GPU-0", memory_domain="two")
    gpus = but(gpus, 1, device_id="GPU-1")
    fit.check(rooms_of(gpus), hosts_of(gpus))
    one = [msgspec.structs.replace(gpu, memory_domain="one") for gpu in gpus]
    with pytest.raises(ConfigError, match=r"layers take 4\.\d MiB, and host node0 has 3\.0 MiB free: use nvme"):
        fit.check(rooms_of(one), hosts_of(one))


def test_hosts_of_one_name_have_a_memory_each() -> None:
    ranks = [msgspec.structs.replace(rank, host="localhost") for rank in alike(3)]
    rooms = rooms_of(but(ranks, 1, memory_domain="two"))
    assert [list(room.ranks) for room in rooms] == [[0, 2], [1]]
