"""Real ranks check each other before they load; one with other weights is refused by name."""

from pathlib import Path

import msgspec
import pytest

from engine.config import EngineConfig
from engine.errors import ConfigError, RankMisfit
from engine.phases import Phases
from engine.rank_frames import RankStart
from engine.rank_spawn import HostProcess, HostSpawner, on_this_host
from engine.rank_startup import rehearse_ranks
from parallel.layout import RankLayout
from parallel.preflight import Preflight
from tests.engine.tiny_models import save_tiny_model

CONFIG = EngineConfig(device="cpu", kv_cache_tokens=512, threads=1)


class Elsewhere(HostSpawner):
    """Rank 1 finds another folder in the place of its checkpoint, as it might on another host."""

    def __init__(self, layout: RankLayout, folder: Path) -> None:
        super().__init__(on_this_host(layout).places)
        self._folder = folder

    def start(self, stage: int, start: RankStart) -> HostProcess:
        return super().start(stage, msgspec.structs.replace(start, folder=str(self._folder)) if start.rank else start)


def rehearse(folder: Path, layout: RankLayout, spawner: HostSpawner, config: EngineConfig = CONFIG) -> Preflight:
    return rehearse_ranks(str(folder), config, layout, spawner, 30.0, Phases())


def test_ranks_of_one_host_are_alike_and_reach_each_other(tmp_path: Path) -> None:
    layout = RankLayout(1, 2)
    found = rehearse(save_tiny_model("llama", tmp_path), layout, on_this_host(layout))
    assert len({(fact.manta, fact.torch, fact.weights, fact.memory_domain) for fact in found.facts}) == 1
    assert [[link.peer for link in speed.links] for speed in found.speeds] == [[1], []]
    assert all(abs(reach.clock_offset_s) < 0.5 and reach.round_trip_s > 0 for reach in found.reaches)
    assert str(found).startswith("2 ranks on one host over gloo checked in ")


def test_a_rank_with_other_weights_is_refused_by_name(tmp_path: Path) -> None:
    layout = RankLayout(2, 1)
    folder, other = (save_tiny_model("llama", tmp_path / name, num_hidden_layers=n) for name, n in (("a", 2), ("b", 3)))
    with pytest.raises(RankMisfit, match=r"rank 1 on .* has weights \w+, its driver has \w+: copy the same checkpoint"):
        rehearse(folder, layout, Elsewhere(layout, other))


def test_a_rank_without_its_gpu_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = RankLayout(2, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    config = msgspec.structs.replace(CONFIG, device="cuda")
    with pytest.raises(ConfigError, match=r"sees no CUDA|without CUDA|GPU number 1 \(from 0\) of a host >= 1"):
        rehearse(save_tiny_model("llama", tmp_path), layout, on_this_host(layout), config)
