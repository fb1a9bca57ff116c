"""Greedy output in float32 is token for token that of transformers' `generate()`, however the engine batches it."""

from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.config import Batching, DType, EngineConfig
from engine.core import EngineCore
from engine.kernels.library import load_kernels
from engine.startup import start_engine
from tests.engine.drive_engine import drive, generate, request, tokens
from tests.engine.tiny_models import SPECIAL, VOCAB_SIZE, save_tiny_model

#: 14 blocks of 8: too few for what the tests run, so that sequences are preempted.
TIGHT = EngineConfig(
    dtype=DType.FLOAT32,
    device="cpu",
    block_size=8,
    kv_cache_tokens=112,
    max_model_len=64,
    max_num_seqs=6,
    max_batched_tokens=24,
    threads=1,
)
ROOMY = EngineConfig(dtype=DType.FLOAT32, device="cpu", block_size=8, kv_cache_tokens=2048, max_num_seqs=16, threads=1)
MAX_TOKENS = 20


def prompts(count: int, seed: int = 3) -> list[list[int]]:
    """Prompts of 3 to 41 tokens; every third repeats the first 19 tokens of the first."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for index in range(count):
        length = (41, 5, 30, 17, 3, 26)[index % 6]
        drawn.append(torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist())
        if index and index % 3 == 0:
            drawn[index] = drawn[0][:19] + drawn[index][:7]
    return drawn


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model("llama", tmp_path_factory.mktemp("llama"))


def engine(folder: Path, config: EngineConfig) -> EngineCore:
    return start_engine(str(folder), config)[0]


@pytest.mark.parametrize("model_type", list(SPECIAL))
def test_matches_generate(model_type: str, tmp_path: Path) -> None:
    """Chunked prompts beside decode steps, late joins, preemption and prefix hits, in one run."""
    folder = save_tiny_model(model_type, tmp_path)
    core = engine(folder, TIGHT)
    asked = prompts(8)
    arrivals = [(2 * index, request(str(index), prompt, max_tokens=MAX_TOKENS)) for index, prompt in enumerate(asked)]
    arrivals.append((200, request("again", asked[0], max_tokens=MAX_TOKENS)))
    chunks = drive(core, arrivals)

    load = core.scheduler.load()
    assert load.num_preemptions > 0
    assert chunks["again"][0].num_cached_tokens >= 16
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = [generate(reference, prompt, MAX_TOKENS) for prompt in asked]
    assert len({token_id for answer in expected for token_id in answer}) > 8, "the model says nothing of interest"
    for index, answer in enumerate(expected):
        assert tokens(chunks[str(index)]) == answer, f"prompt {index}"
    assert tokens(chunks["again"]) == expected[0]


@pytest.mark.parametrize("changes", [{"head_dim": 12}, {"head_dim": 264, "num_attention_heads": 2}], ids=str)
def test_heads_that_the_kernels_do_not_take_run_on_torch(changes: dict[str, int], tmp_path: Path) -> None:
    folder = save_tiny_model("qwen3", tmp_path, **changes)
    asked = prompts(3)
    chunks = drive(engine(folder, TIGHT), [(i, request(str(i), p)) for i, p in enumerate(asked)])
    reference = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert [tokens(chunks[str(i)]) for i in range(3)] == [generate(reference, p, 12) for p in asked]


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
def test_half_precision_stays_close_to_float32(dtype: DType, llama_folder: Path) -> None:
    """Packed and fused kernels where they exist: log probabilities within what rounding explains."""
    config = EngineConfig(dtype=dtype, device="cpu", block_size=8, kv_cache_tokens=2048, threads=1)
    prompt = prompts(1)[0]
    chunks = drive(engine(llama_folder, config), [(0, request("a", prompt, max_tokens=2, prompt_logprobs=0))])["a"]
    reference = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0].log_softmax(dim=-1)
    entries = (chunks[0].prompt_logprobs or [])[1:]
    errors = [
        abs(entry.logprob - expected[position, prompt[position + 1]].item())
        for position, entry in enumerate(entries)
        if entry is not None
    ]
    assert len(errors) == len(prompt) - 1
    assert sum(errors) / len(errors) < 0.1


@pytest.mark.parametrize("batching", [Batching.STATIC, Batching.DYNAMIC])
def test_padding_and_closed_batches_change_no_token(batching: Batching, llama_folder: Path) -> None:
    config = EngineConfig(
        dtype=DType.FLOAT32,
        device="cpu",
        block_size=8,
        kv_cache_tokens=2048,
        batching=batching,
        batch_size=4,
        threads=1,
    )
    asked = prompts(6)
    lengths = [4 + 3 * index for index in range(len(asked))]
    arrivals = [
        (index, request(str(index), prompt, max_tokens=length))
        for index, (prompt, length) in enumerate(zip(asked, lengths, strict=True))
    ]
    chunks = drive(engine(llama_folder, config), arrivals)
    reference = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
    for index, (prompt, length) in enumerate(zip(asked, lengths, strict=True)):
        assert tokens(chunks[str(index)]) == generate(reference, prompt, length)


def test_repetition_penalty_matches_generate(llama_folder: Path) -> None:
    asked = prompts(4)
    chunks = drive(
        engine(llama_folder, ROOMY),
        [(i, request(str(i), p, max_tokens=MAX_TOKENS, repetition_penalty=1.3)) for i, p in enumerate(asked)],
    )
    reference = AutoModelForCausalLM.from_pretrained(llama_folder).eval()
    for index, prompt in enumerate(asked):
        assert tokens(chunks[str(index)]) == generate(reference, prompt, MAX_TOKENS, repetition_penalty=1.3)


SAMPLED = {
    "plain": {"temperature": 0.9},
    "top_k": {"temperature": 1.2, "top_k": 20},
    "top_p": {"temperature": 1.0, "top_p": 0.8},
    "all": {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "presence_penalty": 0.5},
}


@pytest.mark.parametrize("options", list(SAMPLED.values()), ids=list(SAMPLED))
def test_a_seeded_request_draws_the_same_alone_in_company_and_after_preemption(
    options: dict[str, float], llama_folder: Path
) -> None:
    asked = prompts(8)
    watched = request("watched", asked[2], max_tokens=MAX_TOKENS, seed=1234, **options)
    alone = tokens(drive(engine(llama_folder, ROOMY), [(0, watched)])["watched"])

    others = [
        (index, request(str(index), prompt, max_tokens=MAX_TOKENS, seed=index, **SAMPLED["top_k"]))
        for index, prompt in enumerate(asked[:7])
    ]
    together = drive(engine(llama_folder, ROOMY), [*others, (2, watched)])
    assert tokens(together["watched"]) == alone

    core = engine(llama_folder, TIGHT)
    preempted = drive(core, [*others, (2, watched)])
    assert core.scheduler.load().num_preemptions > 0
    assert tokens(preempted["watched"]) == alone
    assert {index: tokens(chunks) for index, chunks in preempted.items()} == {
        index: tokens(chunks) for index, chunks in together.items()
    }


@pytest.mark.skipif(load_kernels() is None, reason="only our kernels compute a row alike in every batch")
def test_in_bfloat16_too_company_and_preemption_change_no_token(llama_folder: Path) -> None:
    asked = prompts(8)
    options = [{}, SAMPLED["plain"], SAMPLED["top_k"], SAMPLED["all"]] * 2
    requests = [
        request(str(index), prompt, max_tokens=MAX_TOKENS, seed=index, **options[index])
        for index, prompt in enumerate(asked)
    ]
    roomy = engine(llama_folder, msgspec.structs.replace(ROOMY, dtype=DType.BFLOAT16))
    alone = {r.request_id: tokens(drive(roomy, [(0, r)])[r.request_id]) for r in requests}
    tight = engine(llama_folder, msgspec.structs.replace(TIGHT, dtype=DType.BFLOAT16))
    together = drive(tight, [(2 * index, r) for index, r in enumerate(requests)])
    assert tight.scheduler.load().num_preemptions > 0
    assert {request_id: tokens(chunks) for request_id, chunks in together.items()} == alone
