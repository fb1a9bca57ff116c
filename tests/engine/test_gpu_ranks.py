"""Ranks on CUDA devices, where there are some, say what one process says on the CPU in float32.

With one GPU all ranks share it and talk through the host's memory; with several each has its own, and NCCL.
docs/gpu.md names this file as the check of what has not been run yet.
"""

import os
from pathlib import Path

import msgspec
import pytest
import torch
import torch.distributed as dist

from engine.errors import ConfigError
from engine.startup import start_engine, start_engine_of_ranks
from parallel.gpus import VISIBLE
from parallel.layout import RankLayout
from parallel.preflight_facts import Transport
from parallel.process_group import Progress, TorchGroup, join_nccl
from tests.engine.rank_world import threaded_engine
from tests.engine.test_ranks import CONFIG, FOUR_RANKS, ODD_VOCABULARY, answers, arrivals
from tests.engine.tiny_models import PLANNED_BY_AUTO_TP, SPECIAL, save_tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

ON_GPU = msgspec.structs.replace(CONFIG, device="cuda")
GRIDS = [RankLayout(1, 1), RankLayout(2, 1), RankLayout(1, 2), RankLayout(2, 2)]


@pytest.mark.parametrize("model_type", [name for name in SPECIAL if name not in {*PLANNED_BY_AUTO_TP, "gpt2"}])
def test_ranks_that_are_threads_on_one_gpu(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny_model(model_type, tmp_path, **ODD_VOCABULARY)
    asked = arrivals(4)
    expected = answers(start_engine(str(folder), CONFIG)[0], asked)
    for layout in FOUR_RANKS:
        core = threaded_engine(folder, ON_GPU, layout, device=torch.device("cuda", 0), transport=Transport.STAGED)
        assert answers(core, asked) == expected, layout


def say_the_same_in_processes(layout: RankLayout, folder: Path) -> None:
    save_tiny_model("llama", folder, **ODD_VOCABULARY)
    asked = arrivals(4, max_tokens=20)
    expected = answers(start_engine(str(folder), CONFIG)[0], asked)
    core, info = start_engine_of_ranks(str(folder), ON_GPU, layout, rank_timeout_s=60.0)
    assert info.device == "cuda:0" and len(info.rank_pids) == layout.world_size
    assert answers(core, asked) == expected


@pytest.mark.parametrize("layout", GRIDS, ids=str)
def test_processes_that_share_a_gpu(layout: RankLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = os.environ.get(VISIBLE, "0").split(",")[0]
    monkeypatch.setenv(VISIBLE, ",".join([first] * layout.world_size))
    say_the_same_in_processes(layout, tmp_path)


@pytest.mark.parametrize("layout", GRIDS[1:], ids=str)
def test_processes_on_gpus_of_their_own_over_nccl(layout: RankLayout, tmp_path: Path) -> None:
    if torch.cuda.device_count() < layout.world_size:
        pytest.skip(f"needs {layout.world_size} CUDA devices")
    say_the_same_in_processes(layout, tmp_path)


def test_a_shared_gpu_needs_a_planned_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = os.environ.get(VISIBLE, "0").split(",")[0]
    monkeypatch.setenv(VISIBLE, f"{first},{first}")
    folder = save_tiny_model("llama", tmp_path)
    config = msgspec.structs.replace(ON_GPU, kv_cache_tokens=None)
    with pytest.raises(ConfigError, match=r"engine\.kv_cache_tokens = None: ranks share a GPU"):
        start_engine_of_ranks(str(folder), config, RankLayout(2, 1))


def test_an_nccl_group_of_one_sums_gathers_and_ends() -> None:
    device = torch.device("cuda", 0)
    group = TorchGroup(join_nccl(dist.HashStore(), 0, 1, device, 30.0), Progress())
    part = torch.arange(6.0, device=device).view(2, 3)
    assert torch.equal(group.all_reduce(part.clone()), part)
    (gathered,), (alone,) = group.all_gather(part), group.gather(part) or []
    assert torch.equal(gathered, part) and torch.equal(alone, part)
    group.abort()
