"""A model's files: found or downloaded, and checked before a single weight is read.

Knows file formats and no tensors (safetensors headers are parsed by hand), so `manta doctor` and `manta config`
can use it without importing torch.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import BadCheckpoint, UnsupportedArchitecture
from engine.safetensors_header import read_header

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
_CONVERT = "load it once where you trust it, and save it with `model.save_pretrained(folder, safe_serialization=True)`"
#: Samples taken over each weight file, so that two checkpoints of one shape have two revisions.
_NUM_SAMPLES, _SAMPLE_BYTES = 64, 4096
_SAFETENSORS_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Checkpoint:
    """A checked folder: its parts fit each other and every weight file is whole."""

    name: str  #: as the user gave it
    path: Path
    config: dict[str, Any]
    weight_files: tuple[Path, ...]
    num_bytes: int  #: of all weights
    dtype: str  #: float32, bfloat16 or float16: what most of the numbers are
    eos_token_ids: tuple[int, ...]
    weights_revision: str

    @property
    def architecture(self) -> str:
        """Name of the model's class."""
        return str(self.config["architectures"][0])

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @property
    def vocab_size(self) -> int:
        return int(_text_config(self.config)["vocab_size"])


def find_checkpoint(model: str) -> Path:
    """The folder of a local path or, for `owner/name[@revision]`, of the hub's snapshot (downloaded if need be)."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.is_file():
        raise BadCheckpoint(model, "this is a file: give the folder that holds config.json and the weights")
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise BadCheckpoint(model, "no such folder (a model on the Hugging Face hub is written owner/name)")
    return _download(model)


def find_config(model: str) -> Path:
    """The folder of a local path, or of the hub's snapshot with at least its config.json; no weight is downloaded."""
    folder = Path(model).expanduser()
    if folder.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        return find_checkpoint(model)
    return _download(model, ("config.json",))


def read_config_only(path: Path, name: str) -> Checkpoint:
    """A checkpoint of which no more than config.json is at hand: enough to plan with, not to load."""
    config = _read_config(path)
    dtype = _text_config(config).get("dtype") or config.get("dtype") or config.get("torch_dtype") or "float32"
    return Checkpoint(name, path, config, (), 0, str(dtype).removeprefix("torch."), _eos_token_ids(path, config), "")


def read_checkpoint(path: Path, name: str | None = None) -> Checkpoint:
    """Check the folder and describe it; raises `BadCheckpoint` or `UnsupportedArchitecture` naming file and remedy."""
    config = _read_config(path)
    weight_files = _weight_files(path)
    headers = {file: read_header(file) for file in weight_files}
    _check_index(path, {file.name: header.tensors.keys() for file, header in headers.items()})
    _check_tokenizer(path, int(_text_config(config)["vocab_size"]))
    sizes: Counter[str] = Counter()
    for header in headers.values():
        for tensor in header.tensors.values():
            sizes[tensor.dtype] += math.prod(tensor.shape)
    most = sizes.most_common(1)[0][0]
    return Checkpoint(
        name=name or str(path),
        path=path,
        config=config,
        weight_files=weight_files,
        num_bytes=sum(file.stat().st_size for file in weight_files),
        dtype=_SAFETENSORS_DTYPES.get(most, most),
        eos_token_ids=_eos_token_ids(path, config),
        weights_revision=_revision(path, {file: header.raw for file, header in headers.items()}),
    )


def _download(model: str, patterns: tuple[str, ...] = _DOWNLOADED) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = model.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))
    except GatedRepoError:
        raise BadCheckpoint(model, "access is gated: accept its terms on the hub, then `hf auth login`") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise BadCheckpoint(
            model, "neither a local folder nor a model on the hub (a private one needs `hf auth login`)"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise BadCheckpoint(
            model,
            f"no such local folder, and the hub cannot be reached: download it elsewhere, give its path ({error})",
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadCheckpoint(str(file), "missing: give a complete Hugging Face model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadCheckpoint(str(file), f"not readable as JSON ({error}): download it again") from None
    if not isinstance(value, dict):
        raise BadCheckpoint(str(file), f"must hold a JSON object, not {type(value).__name__}")
    return value


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) and "vocab_size" in nested else config


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    config = _read_json(file)
    if not isinstance(config.get("model_type"), str):
        raise BadCheckpoint(str(file), "has no model_type: this is not a transformers model")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise BadCheckpoint(str(file), "has no architectures: name the model's class there, e.g. LlamaForCausalLM")
    vocab_size = _text_config(config).get("vocab_size")
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise BadCheckpoint(str(file), f"vocab_size = {vocab_size!r}: must be a positive integer")
    _refuse_remote_code(file, config)
    if (quantization := config.get("quantization_config")) is not None:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise UnsupportedArchitecture(str(file), f"weights quantized by {method}: use the unquantized checkpoint")
    return config


def _refuse_remote_code(file: Path, config: dict[str, Any]) -> None:
    """Code inside a checkpoint is never run. Where it only repeats the class transformers has, it is not needed."""
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict):
        return
    target = auto_map.get("AutoModelForCausalLM") or auto_map.get("AutoModel") or ""
    if str(target).rpartition(".")[2] != config["architectures"][0]:
        raise UnsupportedArchitecture(
            str(file),
            f"auto_map asks for code from the checkpoint ({target or auto_map}), as with trust_remote_code: Manta "
            "never runs it; use a checkpoint of an architecture that transformers itself has",
        )


def _weight_files(path: Path) -> tuple[Path, ...]:
    index = path / INDEX_NAME
    if index.exists():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise BadCheckpoint(str(index), "has no weight_map: download it again")
        files = tuple(path / name for name in sorted(set(weight_map.values())))
        for file in files:
            if not file.is_file():
                raise BadCheckpoint(str(file), f"missing, though {INDEX_NAME} names it: download it again")
        return files
    if (path / SINGLE_NAME).is_file():
        return (path / SINGLE_NAME,)
    for pattern in _PICKLES:
        for file in sorted(path.glob(pattern)):
            if file.name not in ("training_args.bin", "optimizer.pt", "scheduler.pt"):
                raise BadCheckpoint(
                    str(file), f"pickled weights can run code and are refused; only safetensors: {_CONVERT}"
                )
    if gguf := next(iter(sorted(path.glob("*.gguf"))), None):
        raise BadCheckpoint(str(gguf), "GGUF is not read: give the original safetensors checkpoint")
    if shard := next(iter(sorted(path.glob("*.safetensors"))), None):
        raise BadCheckpoint(str(path / INDEX_NAME), f"missing, so nobody knows which shards belong to {shard.name}")
    raise BadCheckpoint(str(path / SINGLE_NAME), "missing: the folder holds no weights")


def _check_index(path: Path, names: dict[str, Any]) -> None:
    index = path / INDEX_NAME
    if not index.exists():
        return
    for tensor, file in _read_json(index)["weight_map"].items():
        if tensor not in names[file]:
            raise BadCheckpoint(
                str(path / file), f"lacks {tensor}, which {INDEX_NAME} says it holds: download both again"
            )


def _check_tokenizer(path: Path, vocab_size: int) -> None:
    """Every ordinary token must have a row in the embedding. Added tokens beyond it occur in good models (a text
    model that keeps its family's image token); a prompt with one is refused when it comes."""
    file = path / "tokenizer.json"
    if not file.exists():
        return
    tokenizer = _read_json(file)
    added = {entry.get("id") for entry in tokenizer.get("added_tokens") or []}
    beyond = [token_id for token_id in _vocabulary_ids(tokenizer) if token_id >= vocab_size and token_id not in added]
    if beyond:
        raise BadCheckpoint(
            str(file),
            f"holds token ids up to {max(beyond)}, but config.json has vocab_size {vocab_size}: "
            "the tokenizer belongs to another model",
        )


def _vocabulary_ids(tokenizer: dict[str, Any]) -> Iterator[int]:
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    return iter(vocabulary.values()) if isinstance(vocabulary, dict) else iter(range(len(vocabulary)))


def _eos_token_ids(path: Path, config: dict[str, Any]) -> tuple[int, ...]:
    file = path / "generation_config.json"
    eos = _read_json(file).get("eos_token_id") if file.exists() else None
    if eos is None:
        eos = _text_config(config).get("eos_token_id", config.get("eos_token_id"))
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (int(eos),)


def _revision(path: Path, headers: dict[Path, bytes]) -> str:
    """Hash over config.json and, for each weight file, its header, its size and samples of its content."""
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file, raw in sorted(headers.items()):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode() + raw)
        with file.open("rb") as stream:
            for sample in range(_NUM_SAMPLES):
                stream.seek(max(0, size - _SAMPLE_BYTES) * sample // (_NUM_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
