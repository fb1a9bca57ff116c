"""What a gateway knows of a model without its weights: tokenizer, chat template, generation defaults."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import msgspec

from cluster.text.chat_template import ChatTemplate
from cluster.text.tokenizer import Tokenizer
from engine.errors import BadCheckpoint

#: The files of a model repository that a gateway reads; never weights.
GATEWAY_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
)


class GenerationDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What the model's `generation_config.json` says, used where a request says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def load(cls, directory: Path) -> "GenerationDefaults":
        """Read a model directory; a file that is not there says nothing."""
        file = directory / "generation_config.json"
        if not file.is_file():
            return cls()
        try:
            said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            eos = said.get("eos_token_id")
            given = {name: said[name] for name in cls.__struct_fields__ if said.get(name) is not None}
            given["eos_token_ids"] = [eos] if isinstance(eos, int) else eos or []
            return msgspec.convert(given, cls)
        except (ValueError, AttributeError) as error:
            raise BadCheckpoint(str(file), f"cannot be read: {error}") from None


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model as requests name it. Its limits are the engines' (`EngineInfo`), asked at run time."""

    name: str
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None = None
    defaults: GenerationDefaults = GenerationDefaults()
    created: int = 0  #: seconds since 1970, for `/v1/models`: when the tokenizer's file was written

    @classmethod
    def load(cls, name: str, location: str) -> "ServedModel":
        """From a local directory or a hub id; BadCheckpoint names the file and the remedy."""
        directory = Path(location) if Path(location).is_dir() else _download(location)
        tokenizer = Tokenizer.load(directory)
        return cls(
            name=name,
            tokenizer=tokenizer,
            chat_template=_load_chat_template(directory, tokenizer),
            defaults=GenerationDefaults.load(directory),
            created=int((directory / "tokenizer.json").stat().st_mtime),
        )


def _download(model: str) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=list(GATEWAY_FILES)))
    except Exception as error:  # the hub client raises errors of several libraries
        raise BadCheckpoint(
            model, f"is no local directory and could not be fetched from the hub ({type(error).__name__}: {error})"
        ) from None


def _load_chat_template(directory: Path, tokenizer: Tokenizer) -> ChatTemplate | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return ChatTemplate(file.read_text(encoding="utf-8"), tokenizer.special_tokens, str(file))
    file = directory / "tokenizer_config.json"
    template: Any = json.loads(file.read_text(encoding="utf-8")).get("chat_template") if file.is_file() else None
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return ChatTemplate(template, tokenizer.special_tokens, str(file)) if isinstance(template, str) else None
