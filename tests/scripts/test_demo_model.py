"""The demo model: its corpus is reproducible, its directory is small and loads, and it answers about what is named."""

import itertools
import random
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from scripts.demo_model import articles, training
from scripts.demo_model.corpus import documents
from scripts.demo_model.stories import Cast, Storyteller
from scripts.demo_model.tables import PERSONS, load_tables, plural
from scripts.demo_model.tokens import batches, encode, train_tokenizer
from scripts.demo_model.wording import as_typed, listing, misspelled

MODEL = Path(__file__).parents[2] / "engine" / "demo_model"
TABLES = load_tables()


def test_same_seed_gives_the_same_corpus() -> None:
    first = list(itertools.islice(documents(3), 200))
    assert first == list(itertools.islice(documents(3), 200))
    assert first != list(itertools.islice(documents(4), 200))


def test_documents_are_clean_english() -> None:
    for document in itertools.islice(documents(5), 1000):
        text = document.text or "\n".join(content for role, content in document.messages if role == "assistant")
        assert text.strip()
        assert re.search(r"[{}|]|  ", text) is None
        if document.messages:
            roles = [role for role, _ in document.messages if role != "system"]
            assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_every_topic_has_a_paragraph_that_names_it() -> None:
    rng = random.Random(0)
    for topic in TABLES.topics:
        assert topic.name.lower() in articles.paragraph(rng, topic).lower()
        assert len(topic.does) >= 4
    assert len(TABLES.topics) > 300
    assert {topic.name for topic in TABLES.topics} >= PERSONS


def test_a_story_names_everybody_it_was_asked_for() -> None:
    rng = random.Random(1)
    teller = Storyteller(TABLES)
    for _ in range(300):
        cast = teller.draw_cast(rng)
        story = teller.tell(rng, cast).lower()
        wanted = (
            cast.hero,
            cast.name,
            cast.helper,
            cast.thing,
            cast.second,
            cast.theme,
            cast.place.removeprefix("the "),
        )
        assert [noun for noun in wanted if noun.lower() not in story] == []
    assert "lantern" in teller.tell(rng, Cast(hero="fox", thing="lantern"))


def test_words_are_formed_as_in_english() -> None:
    assert plural("fox") == "foxes"
    assert plural("city") == "cities"
    assert plural("toy") == "toys"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert misspelled(random.Random(0), "an ox") == "an ox"
    assert {as_typed(random.Random(seed), "Tell me about the sea.") for seed in range(40)} >= {"tell me about the sea."}


def test_only_answers_and_plain_text_are_learned() -> None:
    tokenizer = train_tokenizer(1, 512, 300)
    for document in itertools.islice(documents(6), 50):
        ids, learned = encode(tokenizer, document)
        shown = tokenizer.decode([token for token, mark in zip(ids, learned, strict=True) if mark])
        answers = [content for role, content in document.messages if role == "assistant"]
        assert shown == (document.text or "".join(answers))


def test_a_short_run_lowers_the_loss_and_can_go_on(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(1, 400, 200)
    shape = training.Shape(vocab_size=400, hidden=32, layers=1, heads=2, kv_heads=1, intermediate=64, context=128)

    def run(steps: int, checkpoint: Path | None = None) -> training.Run:
        rounds = (training.Round(steps, fall=0.5),)
        schedule = training.Schedule(seed=1, rounds=rounds, warm_up=2, short=(64, 4), long=(96, 2))
        made = training.Run(training.build_model(shape, tokenizer, 1), tokenizer, schedule)
        if checkpoint is not None:
            made.load(checkpoint)
        return made

    losses: list[float] = []
    whole = run(12)
    whole.train(lambda progress: losses.append(progress.loss), lambda step: None)
    assert losses[-1] < losses[0]
    half = run(24)
    stopped = iter(range(6))
    with pytest.raises(StopIteration):
        half.train(lambda progress: (next(stopped), None)[1], lambda step: None)
    assert half.progress.step == 7
    half.save(tmp_path / "run.pt")
    resumed = run(24, tmp_path / "run.pt")
    resumed.train(lambda progress: None, lambda step: None)
    unbroken = run(24)
    unbroken.train(lambda progress: None, lambda step: None)
    assert resumed.progress.step == unbroken.progress.step == 24
    for left, right in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_rows_begin_at_documents_and_have_one_length() -> None:
    tokenizer = train_tokenizer(1, 400, 200)
    ids, learned = next(batches(tokenizer, documents(2), 96, 5))
    assert ids.shape == learned.shape == (5, 97)
    assert learned.any(axis=1).all()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    return loaded.eval()


def test_the_directory_is_complete_and_small() -> None:
    names = {path.name for path in MODEL.iterdir()}
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert needed | {"README.md", "training.json"} <= names
    assert (MODEL / "model.safetensors").stat().st_size <= 10_000_000


@pytest.mark.parametrize("text", ["Grüße, 世界! 🦊 naïve\tcafé\n\n  x", "\u0000\u200b\ufffd", "مرحبا नमस्ते 12345"])
def test_the_tokenizer_keeps_every_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id is None


def test_the_chat_template_is_what_was_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_token == "<|im_end|>"


def _complete(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    mask = torch.ones_like(ids)
    out = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=160)
    assert out[0, -1] == tokenizer.eos_token_id
    return str(tokenizer.decode(out[0, ids.shape[1] : -1]))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("Tell me about the sea", ["sea", "water"]),
        ("What is a volcano?", ["volcano", "rock"]),
        ("write a short story about a fox and a lantern", ["fox", "lantern"]),
        ("Hello, who are you?", ["model"]),
        ("Why is the sky blue?", ["blue", "light"]),
        ("Give me three tips for sleeping well.", ["1.", "2.", "3."]),
    ],
)
def test_the_model_answers_about_what_is_named(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, words: list[str]
) -> None:
    message = [{"role": "user", "content": prompt}]
    chat = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    answer = _complete(model, tokenizer, chat)
    assert [word for word in words if word not in answer] == []


def test_the_model_goes_on_with_plain_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    text = _complete(model, tokenizer, "Once upon a time there was a lighthouse")
    assert "lighthouse" in text
    assert len(text.split()) > 30
