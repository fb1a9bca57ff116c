"""Layers that wait outside the device's memory say, token for token, what they say from within it."""

import gc
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from engine import layer_stream
from engine.checkpoint import read_checkpoint
from engine.config import DType, EngineConfig, Offload
from engine.errors import ConfigError
from engine.kernels.library import load_kernels
from engine.layer_stream import FileStore, HostStore, LayerStream, make_slots
from engine.model_start import load_part
from engine.rank_part import RankPart
from engine.startup import start_engine
from parallel.layout import RankLayout
from tests.engine.rank_world import threaded_engine
from tests.engine.test_ranks import CONFIG, answers, arrivals
from tests.engine.tiny_models import save_tiny_model

CPU = torch.device("cpu")
FIVE_LAYERS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mixtral": {},  # experts are merged when they are loaded
    "gpt2": {"n_layer": 5},  # neither linears nor plans
    "gemma2": {"vocab_size": 131},
}
ONE, TWO, FOUR = RankLayout(), RankLayout(2, 1), RankLayout(2, 2)


def offloaded(config: EngineConfig, mode: Offload, folder: Path) -> EngineConfig:
    return msgspec.structs.replace(config, offload=mode, offload_dir=str(folder) if mode is Offload.NVME else "")


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
@pytest.mark.parametrize("mode", [Offload.NVME, Offload.CPU])
@pytest.mark.parametrize("model_type", FIVE_LAYERS)
def test_streamed_layers_say_the_same(model_type: str, mode: Offload, dtype: DType, tmp_path: Path) -> None:
    """Also in bfloat16 on packed and fused kernels, where a model in memory runs all its layers as one call."""
    folder = save_tiny_model(model_type, tmp_path, num_hidden_layers=5, **FIVE_LAYERS[model_type])
    config, kernels, asked = msgspec.structs.replace(CONFIG, dtype=dtype), load_kernels(), arrivals(4)
    expected = answers(start_engine(str(folder), config)[0], asked)
    streamed = offloaded(config, mode, tmp_path)
    assert answers(threaded_engine(folder, streamed, ONE, kernels=kernels), asked) == expected


@pytest.mark.parametrize(
    ("model_type", "layout"), [("llama", TWO), ("llama", FOUR), ("opt", TWO), ("olmo2", TWO)], ids=str
)
def test_ranks_stream_their_slices(model_type: str, layout: RankLayout, tmp_path: Path) -> None:
    """Also with biases that one rank adds (opt) and norms over all heads (olmo2)."""
    folder = save_tiny_model(model_type, tmp_path, num_hidden_layers=7, tie_word_embeddings=True)
    asked = arrivals(4)
    expected = answers(start_engine(str(folder), CONFIG)[0], asked)
    streamed = offloaded(CONFIG, Offload.NVME, tmp_path)
    assert answers(threaded_engine(folder, streamed, layout, shared=load_kernels()), asked) == expected


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_the_matrices_of_two_layers_are_in_memory(dtype: DType, tmp_path: Path) -> None:
    """Of ten, whose norms stay."""
    checkpoint = read_checkpoint(save_tiny_model("llama", tmp_path, num_hidden_layers=10))
    config = offloaded(msgspec.structs.replace(CONFIG, dtype=dtype), Offload.NVME, tmp_path)
    module = load_part(checkpoint, config, CPU, load_kernels(), RankPart(ONE, 0))[0].module
    layers: Any = module.get_submodule("model.layers")
    assert len(slots_of(layers[0])) == 1
    assert slots_of(layers[0]) == slots_of(layers[8]) != slots_of(layers[9])
    assert slots_of(layers) == slots_of(layers[0]) | slots_of(layers[1])
    assert not any(tensor.is_meta for tensor in module.parameters())


def slots_of(module: nn.Module) -> set[int]:
    """Where the memory of its matrices begins."""
    return {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers()) if t.ndim >= 2}


@pytest.mark.parametrize("num_layers", [1, 2, 3, 6])
@pytest.mark.parametrize("kind", [HostStore, FileStore])
def test_each_layer_is_there_in_its_turn(kind: Any, num_layers: int, tmp_path: Path) -> None:
    stream, slots = stream_of(kind, num_layers, tmp_path)
    for _ in range(3):
        for layer in range(num_layers):
            stream.enter(layer)
            assert set(slots[layer % len(slots)][: 4096 * (1 + layer % 2)].tolist()) == {layer + 1}
            stream.leave(layer)


@pytest.mark.parametrize("num_layers", [1, 2, 3, 5])
@pytest.mark.parametrize("is_inside", [True, False])
def test_a_pass_after_one_that_was_broken_off(num_layers: int, is_inside: bool, tmp_path: Path) -> None:
    """In or behind any of its layers."""
    stream, slots = stream_of(FileStore, num_layers, tmp_path)
    for last in range(num_layers):
        for layer in range(last + 1):
            stream.enter(layer)
            if layer < last or not is_inside:
                stream.leave(layer)
        for layer in range(num_layers):
            stream.enter(layer)
            assert set(slots[layer % len(slots)][: 4096 * (1 + layer % 2)].tolist()) == {layer + 1}
            stream.leave(layer)


def test_what_reading_raises_is_raised_where_the_layer_is_needed(tmp_path: Path) -> None:
    stream, _ = stream_of(FileStore, 5, tmp_path, cut_short=True)
    stream.enter(0)
    stream.leave(0)
    with pytest.raises(OSError, match="the file of the offloaded layers ends"):
        stream.enter(1)
        stream.leave(1)
        stream.enter(2)


def test_the_reading_thread_ends_with_its_stream(tmp_path: Path) -> None:
    stream, _ = stream_of(FileStore, 3, tmp_path)
    stream.enter(0)
    assert fetchers()
    threads = fetchers()
    del stream
    gc.collect()
    for thread in threads:
        thread.join(10.0)
    assert not any(thread.is_alive() for thread in threads)
    assert not list(tmp_path.iterdir()), "the file has no name"


def stream_of(
    kind: Any, num_layers: int, folder: Path, *, cut_short: bool = False
) -> tuple[LayerStream, list[torch.Tensor]]:
    """A stream over layers of one or two pages, each full of its number + 1."""
    store = HostStore() if kind is HostStore else FileStore(str(folder))
    for layer in range(num_layers):
        store.add(torch.full((4096 * (1 + layer % 2),), layer + 1, dtype=torch.uint8))
    if cut_short:
        store._file.truncate(4096)
    slots = make_slots(store, 2 * 4096, CPU)
    return LayerStream(store, slots), slots


def fetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("offload")]


def test_a_folder_that_cannot_hold_the_layers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"engine\.offload_dir = '/mnt': is for engine\.offload nvme"):
        EngineConfig(offload_dir="/mnt")
    with pytest.raises(ConfigError, match=r"engine\.offload_dir = .*missing.*name a folder on a disk"):
        FileStore(str(tmp_path / "missing"))
    monkeypatch.setattr(layer_stream, "_is_memory", lambda _: True)
    with pytest.raises(ConfigError, match=r"this is memory \(tmpfs\)"):
        FileStore(str(tmp_path))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(str(tmp_path))
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(store, "_file", full)
        with pytest.raises(ConfigError, match="No space left on device"):
            store.add(torch.zeros(4096, dtype=torch.uint8))
