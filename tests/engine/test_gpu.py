"""The engine on a CUDA device, where there is one: the same tokens as `generate()` on the CPU in float32.

docs/gpu.md names this file as the check of what has not been run yet.
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.config import DType, EngineConfig, Offload
from engine.startup import start_engine
from tests.engine.drive_engine import drive, generate, request, tokens
from tests.engine.tiny_models import SPECIAL, VOCAB_SIZE, save_tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

#: Few blocks and a small step budget: chunked prompts, prefix hits and preemption happen in each run.
TIGHT = {"block_size": 8, "kv_cache_tokens": 112, "max_model_len": 64, "max_num_seqs": 6, "max_batched_tokens": 24}


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in (41, 5, 30, 17, 3, 26)]


@pytest.mark.parametrize("model_type", list(SPECIAL))
def test_matches_generate(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny_model(model_type, tmp_path)
    core, info = start_engine(str(folder), EngineConfig(dtype=DType.FLOAT32, device="cuda", **TIGHT))
    assert info.device.startswith("cuda")
    chunks = drive(core, [(2 * i, request(str(i), prompt, max_tokens=20)) for i, prompt in enumerate(prompts())])
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for index, prompt in enumerate(prompts()):
        assert tokens(chunks[str(index)]) == generate(reference, prompt, 20), f"prompt {index}"


@pytest.mark.parametrize("mode", [Offload.CPU, Offload.NVME])
def test_streamed_layers_say_the_same(mode: Offload, tmp_path: Path) -> None:
    """Two of seven layers are on the device, copied there while others compute."""
    folder = save_tiny_model("llama", tmp_path, num_hidden_layers=7)
    asked = [(2 * i, request(str(i), prompt, max_tokens=20)) for i, prompt in enumerate(prompts())]
    answers = []
    for offload in (Offload.NONE, mode):
        config = EngineConfig(dtype=DType.FLOAT32, device="cuda", offload=offload, **TIGHT)
        answers.append(
            {name: tokens(chunks) for name, chunks in drive(start_engine(str(folder), config)[0], asked).items()}
        )
    assert answers[0] == answers[1]


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
def test_half_precision_draws_the_same_from_the_same_seed(dtype: DType, tmp_path: Path) -> None:
    folder = save_tiny_model("llama", tmp_path)
    options = {"temperature": 0.9, "top_k": 20, "seed": 7, "max_tokens": 20}
    answers = []
    for _ in range(2):
        core, info = start_engine(str(folder), EngineConfig(dtype=dtype, device="auto", kv_cache_tokens=2048))
        assert info.dtype == dtype.value
        answers.append(tokens(drive(core, [(0, request("a", prompts()[0], **options))])["a"]))
    assert answers[0] == answers[1] and len(answers[0]) == 20
