"""Tensor and pipeline parallel ranks say in float32, token for token, what one rank says."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import decoder_trial, model_runner
from engine.checkpoint import read_checkpoint
from engine.config import DType, EngineConfig
from engine.core import EngineCore
from engine.errors import BadCheckpoint, UnsupportedArchitecture
from engine.kernels.library import load_kernels
from engine.model_start import load_part
from engine.rank_part import RankPart
from engine.request import GenerateRequest
from engine.startup import start_engine
from parallel.layout import LayoutError, RankLayout
from parallel.preflight_facts import Transport
from tests.engine.drive_engine import drive, request, tokens
from tests.engine.rank_world import threaded_engine
from tests.engine.test_exactness import TIGHT, prompts
from tests.engine.tiny_models import MORE, ONE_STAGE, SPECIAL, save_tiny_model

CONFIG = EngineConfig(
    dtype=DType.FLOAT32,
    device="cpu",
    block_size=8,
    kv_cache_tokens=512,
    max_num_seqs=6,
    max_batched_tokens=48,
    threads=1,
)
ODD_VOCABULARY = {"vocab_size": 131}
#: Two key-value heads on four ranks; and two stages of two ranks.
FOUR_RANKS = [RankLayout(4, 1), RankLayout(2, 2)]


def arrivals(count: int, **sampling: Any) -> list[tuple[int, GenerateRequest]]:
    """Requests that come while others run."""
    sampling = {"max_tokens": 6, **sampling}
    return [(2 * i, request(str(i), prompt, **sampling)) for i, prompt in enumerate(prompts(count))]


def answers(core: EngineCore, asked: list[tuple[int, GenerateRequest]]) -> dict[str, list[int]]:
    """The tokens of each; the executor is closed."""
    chunks = drive(core, asked)
    core.executor.close()
    return {name: tokens(parts) for name, parts in chunks.items()}


@pytest.mark.parametrize(
    "model_type",
    [*(name for name in SPECIAL if name != "gpt2"), *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)],
)
def test_many_ranks_say_what_one_says(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny_model(model_type, tmp_path, **ODD_VOCABULARY)
    asked = arrivals(4)
    expected = answers(start_engine(str(folder), CONFIG)[0], asked)
    layouts = [RankLayout(2, 1), RankLayout(4, 1)] if model_type in ONE_STAGE else FOUR_RANKS
    for layout in layouts:
        assert answers(threaded_engine(folder, CONFIG, layout, shared=load_kernels()), asked) == expected, layout


def test_tensors_that_go_through_the_memory_of_the_host(tmp_path: Path) -> None:
    folder = save_tiny_model("llama", tmp_path, **ODD_VOCABULARY)
    asked, layout = arrivals(4), RankLayout(2, 2)
    expected = answers(start_engine(str(folder), CONFIG)[0], asked)
    assert answers(threaded_engine(folder, CONFIG, layout, transport=Transport.STAGED), asked) == expected


@pytest.mark.parametrize(
    ("layout", "tied"),
    [(RankLayout(2, 1), False), (RankLayout(1, 4), False), (RankLayout(1, 2), True), (RankLayout(2, 2), True)],
    ids=str,
)
def test_preemption_sampling_and_logprobs(layout: RankLayout, tied: bool, tmp_path: Path) -> None:
    """A cache too small for all: tokens of dropped and resent sequences are known at every rank. Over gloo."""
    folder = save_tiny_model("llama", tmp_path, num_hidden_layers=4, tie_word_embeddings=tied)
    asked = arrivals(6, max_tokens=20, temperature=0.9, seed=7, frequency_penalty=0.3, logprobs=2, prompt_logprobs=1)
    alone, ranks = start_engine(str(folder), TIGHT)[0], threaded_engine(folder, TIGHT, layout)
    expected, got = drive(alone, asked), drive(ranks, asked)
    ranks.executor.close()
    assert ranks.scheduler.load().num_preemptions > 0
    for name, chunks in expected.items():
        assert tokens(got[name]) == tokens(chunks)
        for mine, theirs in zip(got[name], chunks, strict=True):
            for one, other in zip(mine.logprobs or [], theirs.logprobs or [], strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            for one, other in zip(mine.prompt_logprobs or [], theirs.prompt_logprobs or [], strict=True):
                assert one is other or one.logprob == pytest.approx(other.logprob, abs=1e-4)


@pytest.mark.skipif(load_kernels() is None, reason="no kernels on this machine")
@pytest.mark.parametrize(
    ("model_type", "layout"),
    [
        ("llama", RankLayout(2, 1)),
        ("qwen3", RankLayout(2, 1)),
        ("qwen3", RankLayout(1, 2)),
        ("llama", RankLayout(2, 2)),
    ],
    ids=str,
)
def test_ranks_run_their_layers_as_one_call_too(
    model_type: str, layout: RankLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, on packed kernels: the same tokens as the modules of the same ranks say."""
    folder = save_tiny_model(model_type, tmp_path, intermediate_size=128)
    config = msgspec.structs.replace(CONFIG, dtype=DType.BFLOAT16)
    kernels, asked = load_kernels(), arrivals(4, max_tokens=12)
    fused: list[bool] = []

    def counting(*args: Any) -> Any:
        decoder = decoder_trial.fuse_decoder(*args)
        fused.append(decoder is not None)
        return decoder

    monkeypatch.setattr(model_runner, "fuse_decoder", counting)
    got = answers(threaded_engine(folder, config, layout, kernels=kernels, shared=kernels), asked)
    assert fused == [True] * layout.world_size
    monkeypatch.setattr(model_runner, "fuse_decoder", lambda *_: None)
    assert got == answers(threaded_engine(folder, config, layout, kernels=kernels, shared=kernels), asked)


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "phi3"])
def test_a_rank_holds_its_part_alone(model_type: str, tmp_path: Path) -> None:
    """Of what is split, each of two ranks has half; the rest (norms, routers) is small."""
    folder = save_tiny_model(model_type, tmp_path)
    checkpoint = read_checkpoint(folder)
    whole, *halves = (
        load_part(checkpoint, CONFIG, torch.device("cpu"), None, RankPart(layout, rank))[0].module
        for layout, rank in ((RankLayout(), 0), (RankLayout(2, 1), 0), (RankLayout(2, 1), 1))
    )
    sizes = [sum(p.numel() for p in module.parameters()) for module in (whole, *halves)]
    assert all(0.5 * sizes[0] <= size <= 0.51 * sizes[0] for size in sizes[1:])


def test_an_architecture_without_a_plan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gpt2's layers are no linears, which AutoTP says too; opt needs AutoTP."""
    checkpoint = read_checkpoint(save_tiny_model("gpt2", tmp_path / "gpt2"))
    for layout, reason in ((RankLayout(2, 1), "AutoTP does not know"), (RankLayout(1, 2), "no pipeline parallel plan")):
        with pytest.raises(LayoutError, match=reason):
            load_part(checkpoint, CONFIG, torch.device("cpu"), None, RankPart(layout, 0))
    monkeypatch.setitem(sys.modules, "deepspeed.module_inject.auto_tp", None)  # as if it were not installed
    checkpoint = read_checkpoint(save_tiny_model("opt", tmp_path / "opt"))
    with pytest.raises(LayoutError, match=r"no tensor parallel plan .* install `manta-serve\[deepspeed\]`"):
        load_part(checkpoint, CONFIG, torch.device("cpu"), None, RankPart(RankLayout(2, 1), 0))


def test_what_is_planned_and_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    """bitnet has norms over what AutoTP would split."""
    checkpoint = read_checkpoint(save_tiny_model("bitnet", tmp_path))
    with pytest.raises(UnsupportedArchitecture, match="cannot compute its part of a flat batch"):
        load_part(checkpoint, CONFIG, torch.device("cpu"), None, RankPart(RankLayout(2, 1), 0))


@pytest.mark.parametrize(
    ("layout", "equation"),
    [
        (RankLayout(3, 1), "4 attention heads % tensor_parallel = 3"),
        (RankLayout(1, 3), "2 layers < pipeline_parallel = 3"),
        (RankLayout(8, 1), "4 attention heads % tensor_parallel = 8"),
    ],
    ids=str,
)
def test_what_cannot_be_split_is_refused_with_the_numbers(layout: RankLayout, equation: str, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save_tiny_model("llama", tmp_path))
    with pytest.raises(LayoutError, match=equation):
        load_part(checkpoint, CONFIG, torch.device("cpu"), None, RankPart(layout, 0))


def test_weights_that_belong_to_nothing_are_refused_by_a_rank_too(tmp_path: Path) -> None:
    folder = save_tiny_model("llama", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.z_proj.weight"] = weights["model.layers.0.self_attn.q_proj.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"z_proj"):
        load_part(read_checkpoint(folder), CONFIG, torch.device("cpu"), None, RankPart(RankLayout(2, 2), 0))
