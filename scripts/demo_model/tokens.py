"""The demo model's tokenizer and the way from documents to rows of token ids with a loss mask."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from scripts.demo_model.corpus import Document, documents

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(seed: int, vocab_size: int, document_count: int) -> Tokenizer:
    """A byte-level BPE: every text can be encoded, there is no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=3,
        show_progress=False,
    )
    texts = (
        document.text or "\n".join(content for _, content in document.messages)
        for document in itertools.islice(documents(seed), document_count)
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json`` with the chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": None,
        "additional_special_tokens": [START],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def encode(tokenizer: Tokenizer, document: Document) -> tuple[list[int], list[bool]]:
    """Token ids and, for each, whether the model has to predict it: answers and plain text, never what a user says."""
    start, end = tokenizer.encode(START + END, add_special_tokens=False).ids
    if document.text:
        text = [*tokenizer.encode(document.text, add_special_tokens=False).ids, end]
        return text, [True] * len(text)
    newline = tokenizer.encode("\n", add_special_tokens=False).ids
    ids: list[int] = []
    learned: list[bool] = []
    for role, content in document.messages:
        head = [start, *tokenizer.encode(f"{role}\n", add_special_tokens=False).ids]
        body = [*tokenizer.encode(content, add_special_tokens=False).ids, end]
        ids += head + body + newline
        learned += [False] * len(head) + [role == "assistant"] * len(body) + [False] * len(newline)
    return ids, learned


def rows(tokenizer: Tokenizer, stream: Iterator[Document], length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless rows of ``length + 1`` ids; each begins at the start of a document, the last document may be cut."""
    while True:
        ids: list[int] = []
        learned: list[bool] = []
        while len(ids) <= length:
            more_ids, more_learned = encode(tokenizer, next(stream))
            ids += more_ids
            learned += more_learned
        yield np.array(ids[: length + 1], dtype=np.int64), np.array(learned[: length + 1], dtype=bool)


def batches(
    tokenizer: Tokenizer, stream: Iterator[Document], length: int, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless batches of ``count`` rows: ids and mask, both ``[count, length + 1]``."""
    source = rows(tokenizer, stream, length)
    while True:
        chosen = list(itertools.islice(source, count))
        yield np.stack([ids for ids, _ in chosen]), np.stack([mask for _, mask in chosen])
