"""The runner: plans in, tokens out. What the scheduler's ordinary plans do not reach is driven here by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.checkpoint import read_checkpoint
from engine.config import DType, EngineConfig
from engine.core import EngineCore
from engine.errors import BadCheckpoint, ConfigError
from engine.kv_cache import KVCache
from engine.model_loader import load_model, model_config
from engine.model_runner import ModelRunner
from engine.request import SamplingParams
from engine.startup import start_engine
from engine.step import NewSequence, ScheduledSequence, StepPlan
from tests.engine.drive_engine import drive, request, tokens
from tests.engine.tiny_models import VOCAB_SIZE, save_tiny_model

BLOCK_SIZE = 4
GREEDY = SamplingParams(max_tokens=50, seed=0, temperature=0.0)
PROMPT = [11, 45, 3, 99, 27, 64, 8]
CONFIG = EngineConfig(dtype=DType.FLOAT32, device="cpu", block_size=8, kv_cache_tokens=1024, max_num_seqs=8, threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def runner(folder: Path) -> ModelRunner:
    checkpoint = read_checkpoint(folder)
    cpu = torch.device("cpu")
    model = load_model(checkpoint, model_config(checkpoint), dtype=torch.float32, device=cpu)
    cache = KVCache(model.layers, num_blocks=20, block_size=BLOCK_SIZE, dtype=torch.float32, device=cpu)
    return ModelRunner(model, cache, None, max_num_seqs=3, max_model_len=32)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def new(sequence_id: int, token_ids: list[int], sampling: SamplingParams = GREEDY) -> NewSequence:
    return NewSequence(sequence_id, token_ids, len(token_ids), sampling, ())


def plan(
    scheduled: list[ScheduledSequence],
    added: list[NewSequence] | None = None,
    *,
    dropped: list[int] | None = None,
    padding: int = 0,
) -> StepPlan:
    return StepPlan(1, dropped or [], added or [], scheduled, padding)


def best(reference: Any, token_ids: list[int]) -> int:
    with torch.inference_mode():
        return int(reference(torch.tensor([token_ids])).logits[0, -1].argmax())


def test_a_sampled_token_is_kept_for_the_next_step(runner: ModelRunner, reference: Any) -> None:
    first = runner.execute(plan([ScheduledSequence(1, 0, 7, [3, 9], True)], [new(1, PROMPT)]))
    assert [(token.sequence_id, token.token_id) for token in first.sampled] == [(1, best(reference, PROMPT))]
    second = runner.execute(plan([ScheduledSequence(1, 7, 1, [], True)]))
    assert second.sampled[0].token_id == best(reference, [*PROMPT, first.sampled[0].token_id])


def test_a_chunk_that_does_not_reach_the_end_samples_nothing(runner: ModelRunner, reference: Any) -> None:
    assert runner.execute(plan([ScheduledSequence(1, 0, 3, [5], False)], [new(1, PROMPT)])).sampled == []
    last = runner.execute(plan([ScheduledSequence(1, 3, 4, [2], True)]))
    assert last.sampled[0].token_id == best(reference, PROMPT)


def test_padding_changes_nothing(runner: ModelRunner, reference: Any) -> None:
    added = [new(1, PROMPT), new(2, PROMPT[:3])]
    scheduled = [ScheduledSequence(1, 0, 7, [3, 9], True), ScheduledSequence(2, 0, 3, [4], True)]
    sampled = runner.execute(plan(scheduled, added, padding=9)).sampled
    assert [token.token_id for token in sampled] == [best(reference, PROMPT), best(reference, PROMPT[:3])]
    more = [ScheduledSequence(1, 7, 1, [], True), ScheduledSequence(2, 3, 1, [], True)]
    again = runner.execute(plan(more, padding=1)).sampled
    assert again[0].token_id == best(reference, [*PROMPT, sampled[0].token_id])
    assert runner.execute(plan([], padding=2)).sampled == []


def test_dropped_rows_are_used_again(runner: ModelRunner, reference: Any) -> None:
    for round_number in range(4):
        ids = [10 * round_number + i for i in range(3)]
        scheduled = [ScheduledSequence(i, 0, 7, [1 + 2 * n, 2 + 2 * n], True) for n, i in enumerate(ids)]
        prompts = [[*PROMPT[:6], 20 + i] for i in ids]
        dropped = [i - 10 for i in ids] if round_number else []
        added = [new(i, prompt) for i, prompt in zip(ids, prompts, strict=True)]
        sampled = runner.execute(plan(scheduled, added, dropped=dropped)).sampled
        assert [token.token_id for token in sampled] == [best(reference, prompt) for prompt in prompts]
    assert runner.execute(plan([], dropped=[30, 31, 32, 999])).sampled == []


def test_the_parameters_of_a_dropped_sequence_go_with_it(runner: ModelRunner, reference: Any) -> None:
    biased = SamplingParams(max_tokens=5, seed=0, temperature=0.0, logit_bias={77: 100.0}, prompt_logprobs=1)
    first = runner.execute(plan([ScheduledSequence(1, 0, 7, [3, 9], True)], [new(1, PROMPT, biased)]))
    assert first.sampled[0].token_id == 77
    assert len(first.prompt_logprobs) == 1
    second = runner.execute(plan([ScheduledSequence(2, 0, 7, [3, 9], True)], [new(2, PROMPT)], dropped=[1]))
    assert second.sampled[0].token_id == best(reference, PROMPT)
    assert second.prompt_logprobs == []


def test_more_sequences_than_rows_is_an_error_of_ours(runner: ModelRunner) -> None:
    with pytest.raises(ValueError, match="sequence 4"):
        runner.execute(plan([], [new(i, PROMPT) for i in range(1, 5)]))


def test_only_the_sequence_whose_logits_are_not_finite_fails(runner: ModelRunner, reference: Any) -> None:
    poisoned = VOCAB_SIZE - 1
    embedding = runner._model.module.get_parameter("model.embed_tokens.weight")
    embedding[poisoned] = float("nan")
    scheduled = [ScheduledSequence(1, 0, 7, [3, 9], True), ScheduledSequence(2, 0, 3, [4], True)]
    sampled = runner.execute(plan(scheduled, [new(1, PROMPT), new(2, [5, poisoned, 6])])).sampled
    assert sampled[0].token_id == best(reference, PROMPT) and not sampled[0].error
    assert "not finite" in sampled[1].error


def test_logprobs_of_prompt_and_output_are_the_models(folder: Path, reference: Any) -> None:
    """Over chunks, beside another request, with prefix caching on."""
    config = EngineConfig(
        dtype=DType.FLOAT32, device="cpu", block_size=8, kv_cache_tokens=1024, max_batched_tokens=5, threads=1
    )
    core = start_engine(str(folder), config)[0]
    prompt = PROMPT * 3
    asked = request("a", prompt, max_tokens=4, prompt_logprobs=2, logprobs=3)
    chunks = drive(core, [(0, request("other", prompt, max_tokens=9)), (3, asked)])["a"]
    whole = prompt + tokens(chunks)
    with torch.inference_mode():
        expected = reference(torch.tensor([whole])).logits[0].log_softmax(dim=-1)
    got = chunks[0].prompt_logprobs
    assert got is not None and got[0] is None and len(got) == len(prompt)
    entries = [*got[1:], *(entry for chunk in chunks for entry in chunk.logprobs or [])]
    assert len(entries) == len(whole) - 1
    for position, entry in enumerate(entries):
        assert entry is not None
        assert entry.logprob == pytest.approx(expected[position, whole[position + 1]].item(), abs=1e-4)
        top = expected[position].topk(2 if position < len(prompt) - 1 else 3)
        assert [token_id for token_id, _ in entry.top] == top.indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(top.values.tolist(), abs=1e-4)


def test_start_reports_its_phases_and_describes_the_engine(folder: Path) -> None:
    seen: list[tuple[str, float]] = []
    core, info = start_engine(str(folder), CONFIG, progress=lambda *phase: seen.append(phase))
    assert isinstance(core, EngineCore)
    assert [name for name, seconds in seen if seconds == 0.0] == ["download", "compile", "load", "warm_up"]
    assert set(info.startup_s) == {"download", "compile", "load", "warm_up"}
    assert (info.architecture, info.dtype, info.device) == ("LlamaForCausalLM", "float32", "cpu")
    assert (info.max_model_len, info.num_blocks, info.eos_token_ids) == (256, 128, (2,))
    assert len(info.weights_revision) == 16
    assert core.scheduler.load().free_blocks == 128


def test_a_length_the_model_has_not_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_model_len = 300.*256"):
        start_engine(str(folder), EngineConfig(device="cpu", max_model_len=300))


def test_weights_that_are_not_finite_are_found_at_start(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny_model("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadCheckpoint, match="not finite"):
        start_engine(str(tmp_path), CONFIG)
