"""Loading: names and dtypes as transformers would have them, and refusals that say why."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from engine.checkpoint import Checkpoint, read_checkpoint
from engine.config import DType
from engine.errors import BadCheckpoint, UnsupportedArchitecture
from engine.kernels.cpu import native_bf16
from engine.kv_cache import LayerShape
from engine.model_loader import LoadedModel, choose_dtype, load_model, model_config, position_limit
from tests.engine.tiny_models import save_tiny_model, tiny_config, tiny_model

CPU = torch.device("cpu")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> LoadedModel:
    checkpoint = read_checkpoint(folder)
    return load_model(checkpoint, model_config(checkpoint), dtype=dtype, device=CPU)


def change_weights(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "qwen3_moe", "gemma2", "gpt2"])
def test_every_weight_is_as_transformers_loads_it(model_type: str, tmp_path: Path) -> None:
    """Merged experts, tied weights and non-persistent buffers included."""
    save_tiny_model(model_type, tmp_path, tie_word_embeddings=model_type in ("gemma2", "gpt2"))
    loaded = load(tmp_path).module
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for ours, theirs in (
        (dict(loaded.named_parameters()), dict(reference.named_parameters())),
        (dict(loaded.named_buffers()), dict(reference.named_buffers())),
    ):
        assert ours.keys() == theirs.keys()
        assert all(not tensor.is_meta and torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_weights_come_in_shards_too(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "whole")
    tiny_model("llama").save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole, shards = load(tmp_path / "whole").module, load(tmp_path / "shards").module
    for (name, one), (other_name, other) in zip(whole.named_parameters(), shards.named_parameters(), strict=True):
        assert name == other_name and torch.equal(one, other)


def test_weights_are_cast_and_rope_stays_float32(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    module = load(tmp_path, torch.bfloat16).module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert module.get_buffer("model.rotary_emb.inv_freq").dtype is torch.float32


def test_the_probe_sees_what_each_layer_caches(tmp_path: Path) -> None:
    save_tiny_model("qwen3", tmp_path, head_dim=24, num_key_value_heads=1)
    loaded = load(tmp_path)
    assert loaded.layers == [LayerShape(1, 24), LayerShape(1, 24)]
    assert loaded.vocab_size == 128


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {k: v for k, v in w.items() if "layers.1.mlp.up" not in k}, "lacks weights.*layers.1.mlp.up_proj"),
        (lambda w: {**w, "model.extra.weight": torch.ones(2)}, "no place for.*model.extra.weight"),
        (lambda w: {**w, "model.norm.weight": torch.ones(7)}, "another shape.*model.norm.weight"),
    ],
    ids=["missing", "unexpected", "mismatched"],
)
def test_weights_that_do_not_fit_are_named(change: Any, said: str, tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    change_weights(tmp_path, change)
    with pytest.raises(BadCheckpoint, match=said):
        load(tmp_path)


UNSUPPORTED = {
    "bloom": ("BloomForCausalLM", {"hidden_size": 32, "n_layer": 1, "n_head": 2}, "ALiBi"),
    "mpt": ("MptForCausalLM", {"d_model": 32, "n_layers": 1, "n_heads": 2}, "ALiBi"),
    "falcon": ("FalconForCausalLM", {"hidden_size": 32, "num_hidden_layers": 1}, "attention interface"),
    "gptj": ("GPTJForCausalLM", {"n_embd": 32, "n_layer": 1, "n_head": 2}, "attention interface"),
    "mamba": ("MambaForCausalLM", {"hidden_size": 32, "num_hidden_layers": 1}, "linear_attention"),
    "t5": ("T5ForConditionalGeneration", {"d_model": 32, "num_layers": 1}, "encoder-decoder"),
    "bert": ("BertModel", {"hidden_size": 32, "num_hidden_layers": 1}, "not a causal language model"),
    "llava": ("LlavaForConditionalGeneration", {}, "image"),
    "qwen3_next": ("Qwen3NextForCausalLM", {"num_hidden_layers": 4}, "linear_attention"),
    "llama4_text": ("Llama4ForCausalLM", {"num_hidden_layers": 4}, "chunked_attention"),
}


def checkpoint_of(folder: Path, config: Any, architecture: str) -> Checkpoint:
    """A folder with this config and one harmless weight: what is refused is refused before loading."""
    config.architectures = [architecture]
    config.save_pretrained(folder)
    save_file({"w": torch.ones(1)}, folder / "model.safetensors")
    return read_checkpoint(folder)


@pytest.mark.parametrize("model_type", list(UNSUPPORTED))
def test_an_architecture_that_cannot_run_is_refused_with_the_reason(model_type: str, tmp_path: Path) -> None:
    architecture, fields, reason = UNSUPPORTED[model_type]
    checkpoint = checkpoint_of(tmp_path, AutoConfig.for_model(model_type, **fields), architecture)
    with pytest.raises(UnsupportedArchitecture, match=reason) as refusal:
        model_config(checkpoint)
    assert architecture in str(refusal.value)


def test_a_head_other_than_language_modelling_is_refused(tmp_path: Path) -> None:
    AutoModel.from_config(tiny_config("llama")).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedArchitecture, match=r"LlamaModel.*not a causal language model"):
        model_config(read_checkpoint(tmp_path))


def test_an_unknown_model_type_is_refused_by_name(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    change_config(tmp_path, model_type="never_heard_of")
    with pytest.raises(UnsupportedArchitecture, match=r"never_heard_of.*trust_remote_code"):
        model_config(read_checkpoint(tmp_path))


def test_a_config_with_a_wrong_value_names_its_file(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    change_config(tmp_path, num_hidden_layers="two")
    with pytest.raises(BadCheckpoint, match=r"config\.json"):
        load(tmp_path)


def test_layers_that_hide_the_step_from_attention_are_seen_by_the_probe(tmp_path: Path) -> None:
    fields = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("nemotron", **fields, intermediate_size=32, num_key_value_heads=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedArchitecture, match="do not hand keyword arguments on"):
        load(tmp_path)


def test_a_decoder_that_looks_ahead_is_seen_by_the_probe(tmp_path: Path) -> None:
    fields = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("bert", **fields, intermediate_size=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedArchitecture, match="bidirectional"):
        load(tmp_path)


def test_rope_that_depends_on_the_batch_ends_at_its_original_limit(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    save_tiny_model("llama", tmp_path, rope_parameters=rope)
    checkpoint = read_checkpoint(tmp_path)
    assert position_limit(checkpoint, model_config(checkpoint)) == 64
    save_tiny_model("llama", tmp_path / "plain")
    plain = read_checkpoint(tmp_path / "plain")
    assert position_limit(plain, model_config(plain)) == 256


def test_auto_dtype_is_the_checkpoints_own_where_it_is_native(tmp_path: Path) -> None:
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    save_tiny_model("llama", tmp_path / "f32")
    bf16, f32 = read_checkpoint(tmp_path / "bf16"), read_checkpoint(tmp_path / "f32")
    assert choose_dtype(DType.AUTO, f32, CPU) is torch.float32
    assert choose_dtype(DType.AUTO, bf16, CPU) is (torch.bfloat16 if native_bf16() else torch.float32)
    assert choose_dtype(DType.AUTO, bf16, torch.device("cuda")) is torch.bfloat16
    assert choose_dtype(DType.FLOAT32, bf16, CPU) is torch.float32
    assert choose_dtype(DType.BFLOAT16, f32, CPU) is torch.bfloat16
