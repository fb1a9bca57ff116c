"""The fused decoder: which models it takes, and that it computes to the last bit what their modules compute."""

from itertools import accumulate
from pathlib import Path

import pytest
import torch

from engine.attention import PagedStep
from engine.checkpoint import read_checkpoint
from engine.config import DType, EngineConfig
from engine.decoder_trial import fuse_decoder
from engine.kernels.attention import NativeAttention
from engine.kernels.decoder import MAX_ROWS
from engine.kernels.fuse import fuse_modules
from engine.kernels.library import KERNELS_VARIABLE, Isa, Kernels, load_kernels
from engine.kernels.linear import pack_linears
from engine.kernels.metadata import AttentionMetadata
from engine.kv_cache import KVCache
from engine.model_loader import LoadedModel, load_model, model_config
from engine.model_start import load_part
from engine.rank_part import RankPart
from engine.startup import start_engine
from engine.step_progress import StepProgress
from parallel.layout import RankLayout
from tests.engine.drive_engine import drive, request, tokens
from tests.engine.tiny_models import VOCAB_SIZE, save_tiny_model

CPU = torch.device("cpu")
BLOCK_SIZE = 16
LONG = {"max_position_embeddings": 2048}
#: What the fused decoder takes, each for something of its own: biases, norms of heads, windows, unequal widths.
TAKEN = {
    "llama": {"head_dim": 24, "num_attention_heads": 4, "num_key_value_heads": 4},
    "qwen2": {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 96},
    "qwen3": {"head_dim": 32},
    "mistral": {"sliding_window": 700},
}


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    loaded = load_kernels()
    if loaded is None:
        pytest.skip("no C++ compiler here, or MANTA_KERNELS=torch")
    return loaded


@pytest.fixture(autouse=True)
def torch_threads() -> None:
    torch.set_num_threads(2)


def packed(model_type: str, folder: Path, kernels: Kernels, **changes: object) -> LoadedModel:
    checkpoint = read_checkpoint(save_tiny_model(model_type, folder, **{**LONG, **changes}))
    model = load_model(checkpoint, model_config(checkpoint), dtype=torch.bfloat16, device=CPU)
    fuse_modules(model.module, kernels)
    pack_linears(model.module, kernels)
    return model


def caches(model: LoadedModel, num_blocks: int) -> tuple[KVCache, KVCache]:
    """Two alike, filled with the same random keys and values."""
    made = []
    for _ in range(2):
        cache = KVCache(model.layers, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=model.dtype, device=CPU)
        generator = torch.Generator().manual_seed(0)
        for tensor in [*cache.keys, *cache.values]:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        made.append(cache)
    return made[0], made[1]


def step(counts: list[int], contexts: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, AttentionMetadata]:
    """Ids, positions, slots and metadata: the last counts[s] tokens of sequences with shuffled blocks."""
    generator = torch.Generator().manual_seed(1)
    blocks_each = -(-max(contexts) // BLOCK_SIZE)
    tables = 1 + torch.randperm(len(counts) * blocks_each, generator=generator).view(len(counts), blocks_each).int()
    positions = torch.cat([torch.arange(end - n, end) for n, end in zip(counts, contexts, strict=True)])
    sequences = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    slots = tables[sequences, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
    metadata = AttentionMetadata(
        query_start=torch.tensor([0, *accumulate(counts)], dtype=torch.int32),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        block_tables=tables,
        max_query_len=max(counts),
        max_context_len=max(contexts),
    )
    return torch.randint(VOCAB_SIZE, positions.shape, generator=generator), positions, slots, metadata


@pytest.mark.parametrize("isa", list(Isa), ids=lambda isa: isa.name)
@pytest.mark.parametrize("model_type", TAKEN)
def test_logits_and_cache_are_equal_to_the_last_bit(
    kernels: Kernels, tmp_path: Path, model_type: str, isa: Isa
) -> None:
    if isa > kernels.isa:
        pytest.skip(f"this CPU has no {isa.name}")
    kernels = kernels.with_isa(isa)
    model = packed(model_type, tmp_path, kernels, **TAKEN[model_type])
    for counts, contexts in (([1], [130]), ([1] * 5, [700, 3, 1500, 64, 1]), ([40, 1, 23], [90, 1200, 23])):
        theirs, ours = caches(model, num_blocks=1 + len(counts) * -(-max(contexts) // BLOCK_SIZE))
        progress = StepProgress()
        decoder = fuse_decoder(model, ours, kernels, progress)
        assert decoder is not None
        ids, positions, slots, metadata = step(counts, contexts)
        keep = torch.tensor(list(accumulate(counts))) - 1
        with torch.inference_mode():
            modules = PagedStep(NativeAttention(kernels), theirs, metadata, slots, StepProgress())
            expected = model.forward(ids, positions, modules, keep)
            for threads in (1, 2, 5):  # more than there are cores: some sleep where others wait
                torch.set_num_threads(threads)
                assert torch.equal(decoder.forward(ids, positions, metadata, slots, keep), expected)
        assert progress.count == 3 * len(model.layers)
        for mine, other in zip([*ours.keys, *ours.values], [*theirs.keys, *theirs.values], strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gemma2", "something else"),
        ("granite", "something else"),
        ("smollm3", "something else"),
        ("glm4", "rotary embedding"),
        ("cohere", "parts"),
        ("olmo2", "parts"),
        ("mixtral", "parts"),
        ("gpt2", "parts"),
    ],
)
def test_other_models_keep_their_modules(
    kernels: Kernels, tmp_path: Path, caplog: pytest.LogCaptureFixture, model_type: str, reason: str
) -> None:
    caplog.set_level("INFO", logger="engine.decoder_trial")
    changes = {} if model_type == "gpt2" else LONG
    checkpoint = read_checkpoint(save_tiny_model(model_type, tmp_path, **changes))
    model = load_model(checkpoint, model_config(checkpoint), dtype=torch.bfloat16, device=CPU)
    fuse_modules(model.module, kernels)
    pack_linears(model.module, kernels)
    assert fuse_decoder(model, caches(model, 4)[0], kernels, StepProgress()) is None
    assert reason in caplog.text


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("model_type", "is_taken"), [("qwen3", True), ("granite", False)])
def test_a_pipeline_stage_is_tried_without_the_others(
    kernels: Kernels, tmp_path: Path, model_type: str, is_taken: bool, rank: int
) -> None:
    checkpoint = read_checkpoint(save_tiny_model(model_type, tmp_path, **LONG))
    config = EngineConfig(dtype=DType.BFLOAT16)
    model, _ = load_part(checkpoint, config, CPU, kernels, RankPart(RankLayout(1, 2), rank))
    assert (fuse_decoder(model, caches(model, 4)[0], kernels, StepProgress()) is not None) == is_taken


def test_sizes_that_do_not_fill_blocks_keep_their_modules(kernels: Kernels, tmp_path: Path) -> None:
    model = packed("llama", tmp_path, kernels, intermediate_size=72)
    assert fuse_decoder(model, caches(model, 4)[0], kernels, StepProgress()) is None


def test_a_step_of_too_many_rows_is_refused(kernels: Kernels, tmp_path: Path) -> None:
    model = packed("llama", tmp_path, kernels)
    decoder = fuse_decoder(model, caches(model, 9)[0], kernels, StepProgress())
    assert decoder is not None
    ids, positions, slots, metadata = step([MAX_ROWS + 1], [MAX_ROWS + 1])
    with pytest.raises(ValueError, match="takes 1 to 64"):
        decoder.forward(ids, positions, metadata, slots, None)


def test_an_engine_generates_the_same_tokens(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="engine.decoder_trial")
    monkeypatch.delenv(KERNELS_VARIABLE, raising=False)
    folder = save_tiny_model("qwen2", tmp_path)
    config = EngineConfig(
        dtype=DType.BFLOAT16, device="cpu", block_size=8, kv_cache_tokens=512, max_num_seqs=8,
        max_batched_tokens=96, threads=2,
    )  # fmt: skip
    prompts = [[3 + (7 * i + 5 * j) % 120 for j in range(5 + 31 * i)] for i in range(5)]
    arrivals = [
        (3 * i, request(str(i), prompt, max_tokens=20, temperature=i % 2 * 0.8)) for i, prompt in enumerate(prompts)
    ]
    core, _ = start_engine(str(folder), config)
    fused = drive(core, arrivals)
    assert "2 layers run as one call" in caplog.text
    caplog.clear()
    monkeypatch.setenv(KERNELS_VARIABLE, "modules")
    core, _ = start_engine(str(folder), config)
    assert "the layers stay modules" in caplog.text
    modules = drive(core, arrivals)
    assert {name: tokens(chunks) for name, chunks in fused.items()} == {
        name: tokens(chunks) for name, chunks in modules.items()
    }
