"""What is measured on the meta device is what ranks hold once they have loaded."""

from pathlib import Path

import pytest
import torch

from engine.checkpoint import read_checkpoint
from engine.config import DType, EngineConfig
from engine.kv_cache import bytes_per_token
from engine.model_loader import LoadedModel, model_config
from engine.model_sizes import measure_model
from engine.model_start import load_part
from engine.rank_part import RankPart
from parallel.layout import RankLayout
from tests.engine.tiny_models import PLANNED_BY_AUTO_TP, SPECIAL, save_tiny_model

CONFIG = EngineConfig(dtype=DType.FLOAT32, device="cpu", threads=1)


def held(loaded: LoadedModel) -> int:
    """Bytes of weights and buffers; the numbers that stand for an embedding elsewhere, or scale it, are no tensors."""
    named = (*loaded.module.named_parameters(), *loaded.module.named_buffers())
    return sum(tensor.nbytes for name, tensor in named if tensor.ndim and not name.endswith(".zero"))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("model_type", SPECIAL)
def test_parts_are_as_large_as_they_were_measured(model_type: str, tied: bool, tmp_path: Path) -> None:
    """Each stage's first rank, of 1 x 1, 2 x 2 and 4 x 1, with a vocabulary that does not divide."""
    folder = save_tiny_model(model_type, tmp_path, vocab_size=131, tie_word_embeddings=tied)
    checkpoint = read_checkpoint(folder)
    model = measure_model(
        checkpoint, model_config(checkpoint), torch.float32, tensor_sizes=(1, 2, 4), stage_counts=(1, 2)
    )
    layouts = [RankLayout(), RankLayout(4, 1), RankLayout(2, 2)]
    for layout in layouts[: 1 if model_type == "gpt2" else 2 if model_type in PLANNED_BY_AUTO_TP else 3]:
        for index, stage in enumerate(model.stages(layout.tensor_parallel, layout.pipeline_parallel)):
            part = RankPart(layout, layout.rank_at(index, 0))
            loaded, limit = load_part(checkpoint, CONFIG, torch.device("cpu"), None, part)
            assert held(loaded) == stage.num_bytes, (layout, index)
            assert bytes_per_token(loaded.layers, loaded.dtype) == stage.kv_bytes, (layout, index)
            assert len(part.tensor_cut.reduced) == sum(layer.num_sums for layer in stage.layers), (layout, index)
            assert limit == model.position_limit


def test_what_cannot_be_cut_says_why(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save_tiny_model("gpt2", tmp_path))
    model = measure_model(checkpoint, model_config(checkpoint), torch.float32, tensor_sizes=(2,), stage_counts=(2,))
    assert not model.parts
    assert not model.splits
    assert "no tensor parallel plan" in model.tensor_refusals[2]
    assert "no pipeline parallel plan" in model.pipeline_refusals[2]


def test_experts_are_told_apart(tmp_path: Path) -> None:
    """Two of four experts a token; three matrices of 64 x 96 each, in half at each of two ranks."""
    checkpoint = read_checkpoint(save_tiny_model("mixtral", tmp_path))
    model = measure_model(checkpoint, model_config(checkpoint), torch.bfloat16, tensor_sizes=(2,))
    assert model.expert_share == 0.5
    assert model.parts[2].layers[0].expert_bytes == 4 * 3 * 64 * 96 * 2 // 2
