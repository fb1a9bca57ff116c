"""What is wrong with a checkpoint is found before loading, and the message names the file and the remedy."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint import INDEX_NAME, SINGLE_NAME, find_checkpoint, read_checkpoint
from engine.errors import BadCheckpoint, ModelRefused, UnsupportedArchitecture

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 10,
    "eos_token_id": 2,
}


def write_safetensors(file: Path, tensors: dict[str, int], dtype: str = "BF16") -> None:
    """A file of one-dimensional tensors of the given lengths, filled with the byte 7."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, length in tensors.items():
        size = length * {"BF16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": [length], "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + b"\x07" * end)


def write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good checkpoint of two shards with a tokenizer."""
    write_json(tmp_path / "config.json", CONFIG)
    write_safetensors(tmp_path / "model-1.safetensors", {"a": 5, "b": 3})
    write_safetensors(tmp_path / "model-2.safetensors", {"c": 4})
    weight_map = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}
    write_json(tmp_path / INDEX_NAME, {"weight_map": weight_map})
    write_json(tmp_path / "tokenizer.json", {"model": {"vocab": {"x": 0, "y": 9}}, "added_tokens": []})
    return tmp_path


def test_a_good_checkpoint_is_described(folder: Path) -> None:
    checkpoint = read_checkpoint(folder, "mine")
    assert (checkpoint.name, checkpoint.architecture, checkpoint.vocab_size) == ("mine", "LlamaForCausalLM", 10)
    assert [file.name for file in checkpoint.weight_files] == ["model-1.safetensors", "model-2.safetensors"]
    assert checkpoint.dtype == "bfloat16"
    assert checkpoint.eos_token_ids == (2,)
    assert checkpoint.num_bytes == sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def test_generation_config_names_the_ends(folder: Path) -> None:
    write_json(folder / "generation_config.json", {"eos_token_id": [3, 4]})
    assert read_checkpoint(folder).eos_token_ids == (3, 4)


def change_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / "config.json", {**CONFIG, **changes})


def truncate(name: str, keep: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep]) and None


def leave_only(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for file in [*folder.glob("*.safetensors"), folder / INDEX_NAME]:
            file.unlink()
        (folder / name).write_bytes(b"x")

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), ["config.json", "missing"]),
    "config not json": (write("config.json", b"{oops"), ["config.json", "JSON"]),
    "config a list": (write("config.json", b"[]"), ["config.json", "object"]),
    "no model type": (change_config(model_type=None), ["config.json", "model_type"]),
    "no architectures": (change_config(architectures=None), ["config.json", "architectures"]),
    "vocabulary": (change_config(vocab_size="ten"), ["vocab_size"]),
    "shard missing": (lambda folder: (folder / "model-2.safetensors").unlink(), ["model-2.safetensors", "missing"]),
    "shard truncated": (truncate("model-1.safetensors", -3), ["model-1.safetensors", "truncated"]),
    "shard cut in its header": (truncate("model-1.safetensors", 30), ["model-1.safetensors", "truncated"]),
    "shard empty": (truncate("model-1.safetensors", 0), ["model-1.safetensors", "truncated"]),
    "shard no safetensors": (write("model-1.safetensors", b"PK" * 40), ["model-1.safetensors", "not a safetensors"]),
    "header damaged": (
        write("model-1.safetensors", struct.pack("<Q", 4) + b"{{{{"),
        ["model-1.safetensors", "damaged"],
    ),
    "tensor missing": (
        lambda folder: write_safetensors(folder / "model-1.safetensors", {"a": 5}),
        ["model-1.safetensors", "lacks b"],
    ),
    "index without map": (write(INDEX_NAME, b"{}"), [INDEX_NAME, "weight_map"]),
    "index missing": (lambda folder: (folder / INDEX_NAME).unlink(), [INDEX_NAME, "missing"]),
    "pickle": (leave_only("pytorch_model.bin"), ["pytorch_model.bin", "pickle", "save_pretrained"]),
    "gguf": (leave_only("model.gguf"), ["model.gguf", "GGUF"]),
    "no weights": (leave_only("readme.md"), [SINGLE_NAME, "no weights"]),
    "foreign tokenizer": (
        write("tokenizer.json", b'{"model": {"vocab": {"x": 12}}}'),
        ["tokenizer.json", "12", "vocab_size 10"],
    ),
    "foreign unigram tokenizer": (
        write("tokenizer.json", json.dumps({"model": {"vocab": [["x", 0.0]] * 11}}).encode()),
        ["tokenizer.json", "vocab_size 10"],
    ),
    "code in the checkpoint": (
        change_config(auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}),
        ["config.json", "modeling_own.OwnForCausalLM", "trust_remote_code"],
    ),
    "quantized": (change_config(quantization_config={"quant_method": "gptq"}), ["config.json", "gptq"]),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_fault_is_refused_naming_file_and_reason(fault: str, folder: Path) -> None:
    change, mentioned = FAULTS[fault]
    change(folder)
    with pytest.raises(ModelRefused) as refusal:
        read_checkpoint(folder)
    for text in mentioned:
        assert text in str(refusal.value)


def test_added_tokens_beyond_the_vocabulary_are_no_fault(folder: Path) -> None:
    """Text models that keep an image token of their family have them."""
    tokenizer = {"model": {"vocab": {"x": 0, "<image>": 10}}, "added_tokens": [{"id": 10, "content": "<image>"}]}
    write_json(folder / "tokenizer.json", tokenizer)
    assert read_checkpoint(folder).vocab_size == 10


def test_a_class_that_transformers_has_needs_no_code_from_the_checkpoint(folder: Path) -> None:
    change_config(auto_map={"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"})(folder)
    assert read_checkpoint(folder).architecture == "LlamaForCausalLM"


def test_remote_code_is_an_unsupported_architecture(folder: Path) -> None:
    change_config(auto_map={"AutoConfig": "configuration_own.OwnConfig"})(folder)
    with pytest.raises(UnsupportedArchitecture, match="auto_map"):
        read_checkpoint(folder)


def test_the_revision_follows_config_shapes_and_content(folder: Path) -> None:
    first = read_checkpoint(folder).weights_revision
    assert read_checkpoint(folder).weights_revision == first
    file = folder / "model-2.safetensors"
    original = file.read_bytes()
    file.write_bytes(original[:-1] + b"\x08")
    changed = read_checkpoint(folder).weights_revision
    assert changed != first
    file.write_bytes(original)
    assert read_checkpoint(folder).weights_revision == first
    change_config(rope_theta=5.0)(folder)
    assert read_checkpoint(folder).weights_revision not in (first, changed)


def test_a_single_file_needs_no_index(folder: Path) -> None:
    leave_only("readme.md")(folder)
    write_safetensors(folder / SINGLE_NAME, {"a": 6}, dtype="F32")
    checkpoint = read_checkpoint(folder)
    assert checkpoint.dtype == "float32"
    assert checkpoint.weight_files == (folder / SINGLE_NAME,)


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(model: str) -> None:
    with pytest.raises(BadCheckpoint, match="no such folder") as refusal:
        find_checkpoint(model)
    assert model in str(refusal.value)


def test_a_file_is_not_a_model(folder: Path) -> None:
    with pytest.raises(BadCheckpoint, match="this is a file"):
        find_checkpoint(str(folder / "config.json"))
    assert find_checkpoint(str(folder)) == folder.resolve()


def test_a_hub_model_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = (
        "from engine.checkpoint import find_checkpoint\n"
        "from engine.errors import BadCheckpoint\n"
        "try:\n    find_checkpoint('someone/something')\n"
        "except BadCheckpoint as error:\n    print(error)\n"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "someone/something" in done.stdout
    assert "cannot be reached" in done.stdout


def test_checking_a_checkpoint_imports_no_torch() -> None:
    script = "import sys, engine.checkpoint; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
