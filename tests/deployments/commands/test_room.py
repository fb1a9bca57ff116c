"""What is said when Ray finds no room for a replica."""

import io
import time
from typing import Any

import pytest
from rich.console import Console

from cluster.config import MantaConfig, ModelConfig
from deployments.commands import placement, room
from deployments.commands.room import NoRoom, RoomWatch, require_room
from deployments.commands.start_progress import StartProgress
from engine.config import EngineConfig

NODES = [
    {"Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 8.0, "GPU": 1.0}},
    {"Alive": True, "NodeManagerAddress": "10.0.0.2", "Resources": {"CPU": 8.0, "GPU": 2.0}},
    {"Alive": False, "NodeManagerAddress": "10.0.0.3", "Resources": {"CPU": 64.0, "GPU": 8.0}},
]


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.ray, "nodes", lambda: NODES)
    monkeypatch.setattr(room.ray, "available_resources", lambda: {"CPU": 12.6, "GPU": 1.0, "memory": 1e9})


def config(tensor_parallel: int, pipeline_parallel: int = 1) -> MantaConfig:
    grid: dict[str, Any] = {"tensor_parallel": tensor_parallel, "pipeline_parallel": pipeline_parallel}
    return MantaConfig(models=(ModelConfig(model="/models/big", engine=EngineConfig(device="cuda"), **grid),))


def test_a_stage_that_no_host_can_hold_is_refused_with_what_the_hosts_have() -> None:
    require_room(config(2, 2))
    with pytest.raises(NoRoom) as refused:
        require_room(config(4))
    for part in ("'big'", "4 CPU and 4 GPU", "10.0.0.1 8 CPU and 1 GPU, 10.0.0.2 8 CPU and 2 GPU,", "tensor_parallel"):
        assert part in str(refused.value)
    assert "10.0.0.3" not in str(refused.value)


def test_replicas_that_wait_are_told_once_with_the_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.time() - 2 * room.PATIENCE_S
    waiting = {"state": "STARTING", "start_time_s": started}
    replicas = [waiting, {**waiting, "start_time_s": time.time()}, {**waiting, "node_id": "n"}]
    deployments = {"engine-big": {"replicas": replicas}}
    monkeypatch.setattr(placement, "_details", lambda: {"applications": {"manta": {"deployments": deployments}}})
    monkeypatch.setattr(room, "PATIENCE_S", 0.0)
    out = io.StringIO()
    watch = RoomWatch(config(2, 2), StartProgress(Console(file=out, width=300)))
    assert watch.blame("give more time") == "give more time"
    monkeypatch.setattr(room, "PATIENCE_S", 5.0)
    watch.look()
    watch.look()
    said = out.getvalue()
    assert said.count("no room yet for 1 of 1 replicas of big: 2 stages, each of 2 CPU and 2 GPU on one host") == 1
    assert "12.6 CPU and 1 GPU are free in all" in said
    assert "no room yet" in watch.blame("give more time")
