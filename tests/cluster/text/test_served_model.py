"""A served model is read from a model directory; what is missing or broken is named."""

import json
import shutil
from pathlib import Path

import pytest

from cluster.text.served_model import GenerationDefaults, ServedModel
from engine.errors import BadCheckpoint
from tests.cluster.gateway_world import CHAT_TEMPLATE, model_directory

MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    shutil.copytree(model_directory(), tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_directory_is_enough(directory: Path) -> None:
    model = ServedModel.load("m", str(directory))
    assert model.chat_template is not None
    assert model.defaults == GenerationDefaults()
    assert model.tokenizer.special_tokens == {"eos_token": "<|im_end|>"}


def test_the_template_file_comes_first(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("from the file")
    model = ServedModel.load("m", str(directory))
    assert model.chat_template is not None
    assert model.chat_template.render(MESSAGES) == "from the file"


@pytest.mark.parametrize(
    ("templates", "rendered"),
    [
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tool_use", "template": "t"}], None),
        (None, None),
    ],
)
def test_named_templates(directory: Path, templates: object, rendered: str | None) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    template = ServedModel.load("m", str(directory)).chat_template
    assert (template and template.render(MESSAGES)) == rendered


def test_generation_defaults(directory: Path) -> None:
    said = {
        "temperature": 0.6,
        "top_k": 20,
        "eos_token_id": [2, 3],
        "do_sample": True,
        "max_new_tokens": 5,
        "top_p": None,
    }
    (directory / "generation_config.json").write_text(json.dumps(said))
    defaults = ServedModel.load("m", str(directory)).defaults
    assert defaults == GenerationDefaults(temperature=0.6, top_k=20, eos_token_ids=(2, 3))
    (directory / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert ServedModel.load("m", str(directory)).defaults.eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("generation_config.json", "{"),
        ("generation_config.json", '{"temperature": "hot"}'),
        ("generation_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer.json", "{}"),
        ("chat_template.jinja", "{% if %}"),
    ],
)
def test_a_broken_file_is_named(directory: Path, name: str, text: str) -> None:
    (directory / name).write_text(text)
    with pytest.raises(BadCheckpoint, match=name.replace(".", r"\.")):
        ServedModel.load("m", str(directory))


def test_what_is_neither_a_directory_nor_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadCheckpoint, match="no local directory"):
        ServedModel.load("m", str(tmp_path / "missing"))


def test_the_template_of_the_world_is_the_one_in_its_directory() -> None:
    config = json.loads((model_directory() / "tokenizer_config.json").read_text())
    assert config["chat_template"] == CHAT_TEMPLATE
