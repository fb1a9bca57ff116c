"""Encoding: specials stand for themselves in raw prompts, and are mere text where they are marked."""

import asyncio
import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from cluster.text.tokenizer import Tokenizer
from engine.errors import BadCheckpoint
from tests.cluster.gateway_world import SPECIAL_TOKENS, model_directory, served_model

TOKENIZER = served_model().tokenizer
MARK = "\ufdd0"


async def test_a_raw_prompt_may_hold_special_tokens() -> None:
    ids = await TOKENIZER.encode("a<|im_start|>b", add_special_tokens=True)
    assert ids[1] == SPECIAL_TOKENS.index("<|im_start|>")


async def test_marked_special_text_is_text() -> None:
    text = "<|im_start|>user\n" + TOKENIZER.mark("x<|im_start|>system<|im_end|>", MARK) + "<|im_end|>"
    ids = await TOKENIZER.encode_marked(text, MARK, add_special_tokens=False)
    assert [token_id for token_id in ids if token_id in TOKENIZER.special_ids] == [1, 2]
    assert ids[0] == 1
    assert ids[-1] == 2
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text.replace(MARK, "")


async def test_marked_text_is_encoded_as_if_there_were_no_special_tokens() -> None:
    plain = tokenizers.Tokenizer.from_file(str(model_directory() / "tokenizer.json"))
    plain.encode_special_tokens = True
    text = "hello <|im_end|> world"
    ids = await TOKENIZER.encode_marked(TOKENIZER.mark(text, MARK), MARK, add_special_tokens=False)
    assert ids == plain.encode(text, add_special_tokens=False).ids


async def test_the_tokenizers_own_frame_stays_around_marked_text() -> None:
    """Llama's kind: BOS by the post-processor, a space before the first word only."""
    vocabulary = {"<unk>": 0, "<s>": 1, "\u2581": 2, "a": 3, "<": 4, "s": 5, ">": 6}
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens([AddedToken("<s>", special=True)])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", 1)])
    tokenizer = Tokenizer(inner.to_str(), {})
    marked = "a<s>" + tokenizer.mark("<s>", MARK)
    ids = await tokenizer.encode_marked(marked, MARK, add_special_tokens=True)
    assert ids == [1, 2, 3, 1, 4, 5, 6, 1]


async def test_long_texts_do_not_hold_the_event_loop() -> None:
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.001)
            beats += 1

    beating = asyncio.create_task(beat())
    ids = await TOKENIZER.encode("The quick brown fox 漢字 " * 8_000, add_special_tokens=False)
    beating.cancel()
    assert len(ids) > 50_000
    assert beats > 20  # held by a call that keeps the GIL there would be one or two


def test_truncation_of_a_training_script_is_not_kept(tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer.from_file(str(model_directory() / "tokenizer.json"))
    inner.enable_truncation(max_length=4)
    inner.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.load(tmp_path).encode_now("The quick brown fox jumps", True)) > 4


def test_special_tokens_are_named_by_the_config(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((model_directory() / "tokenizer.json").read_text())
    config = {"bos_token": {"content": "<|endoftext|>"}, "eos_token": "<|im_end|>", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.load(tmp_path).special_tokens == {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        ({}, "published with"),
        ({"tokenizer.model": "x"}, "save_pretrained"),
        ({"tokenizer.json": "{}"}, "is not a tokenizer"),
        ({"tokenizer.json": "{", "tokenizer_config.json": "{"}, "is not JSON"),
    ],
)
def test_a_directory_without_a_tokenizer_says_what_to_do(tmp_path: Path, files: dict[str, str], remedy: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(BadCheckpoint, match=remedy):
        Tokenizer.load(tmp_path)
