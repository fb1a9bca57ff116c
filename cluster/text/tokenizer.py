"""The text-to-token side of a served model: encoding, and what each token is in bytes.

Needs no transformers: a model directory's `tokenizer.json` says everything, `tokenizer_config.json` names the
special tokens that chat templates use.
"""

import asyncio
import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Any

import tokenizers

from cluster.text.literal_pattern import any_of
from engine.errors import BadCheckpoint

_OFF_LOOP_CHARS = 4096  #: longer texts are encoded in a thread (`encode_batch_fast` lets go of the GIL)
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenAlphabet(StrEnum):
    """How the tokens of a vocabulary spell bytes."""

    BYTE_LEVEL = "byte_level"  #: each character stands for a byte (GPT-2, Llama 3, Qwen)
    SENTENCE_PIECE = "sentence_piece"  #: U+2581 is a space, <0x0A> is a byte (Llama 2, Gemma, Mistral)
    OPAQUE = "opaque"  #: only the tokenizer's own decoder knows


class Tokenizer:
    """Encodes text and decodes ids of one vocabulary; stateless, shared by all requests."""

    def __init__(self, tokenizer_json: str, special_tokens: dict[str, str]) -> None:
        self._tokenizer = _without_limits(tokenizers.Tokenizer.from_str(tokenizer_json))
        self._literal: dict[bool, tokenizers.Tokenizer] = {}
        self.special_tokens = special_tokens  #: by name: bos_token, eos_token, ...
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._special_text = any_of(token.content for token in added.values() if token.special and token.content)
        self.alphabet = _alphabet(json.loads(tokenizer_json).get("decoder"))
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """Read a model directory; BadCheckpoint where that cannot be."""
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise BadCheckpoint(str(file), _missing_remedy(directory))
        config = _read_json(directory / "tokenizer_config.json")
        names = {**_read_json(directory / "special_tokens_map.json"), **config}
        special = {name: _token_text(names[name]) for name in _SPECIAL_NAMES if names.get(name)}
        try:
            return cls(file.read_text(encoding="utf-8"), special)
        except Exception as error:  # the library raises bare Exception
            raise BadCheckpoint(str(file), f"is not a tokenizer of the `tokenizers` library: {error}") from None

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of `text`, in which the text of a special token stands for that token."""
        return await _off_loop_if_long(len(text), self.encode_now, text, add_special_tokens)

    def encode_now(self, text: str, add_special_tokens: bool) -> list[int]:
        """As `encode`, in this thread."""
        return _encode(self._tokenizer, text, add_special_tokens)

    async def encode_marked(self, text: str, marker: str, *, add_special_tokens: bool) -> list[int]:
        """As `encode`, but special-token text that holds `marker` inside is encoded as mere text.

        The marker itself vanishes. `mark` puts it into what clients wrote (see `cluster.text.chat_template`).
        """
        if marker not in text:
            return await self.encode(text, add_special_tokens=add_special_tokens)
        return await _off_loop_if_long(len(text), self._encode_marked, text, marker, add_special_tokens)

    def mark(self, text: str, marker: str) -> str:
        """Break every special-token text in `text` with the marker after its first character."""
        return self._special_text.sub(lambda found: found[0][0] + marker + found[0][1:], text)

    def _encode_marked(self, text: str, marker: str, add_special_tokens: bool) -> list[int]:
        whole = self._tokenizer.encode_batch([text], add_special_tokens=False)[0]
        before, after = self._frame() if add_special_tokens else ([], [])
        ids: list[int] = [*before]
        start = 0
        for token_id, (left, right) in zip(whole.ids, whole.offsets, strict=True):
            if token_id in self.special_ids:
                ids += self._encode_literally(text[start:left].replace(marker, ""), first=start == 0)
                ids.append(token_id)
                start = right
        return ids + self._encode_literally(text[start:].replace(marker, ""), first=start == 0) + after

    def _frame(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer itself puts before and after a text."""
        bare, framed = self.encode_now("x", False), self.encode_now("x", True)
        at = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
        return framed[:at], framed[at + len(bare) :]

    def _encode_literally(self, text: str, *, first: bool) -> list[int]:
        if not text:
            return []
        if first not in self._literal:
            spec = self._tokenizer.to_str()
            literal = tokenizers.Tokenizer.from_str(spec if first else _never_prepend(spec))
            literal.encode_special_tokens = True
            self._literal[first] = literal
        return _encode(self._literal[first], text, False)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text of the ids as the tokenizer's own decoder joins them."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of an id; None for an id without one (a padded vocabulary)."""
        return self._tokenizer.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes an id contributes to a text; empty for an id that the vocabulary lacks."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        token = self.token(token_id)
        if token is None:
            return b""
        if self.alphabet is TokenAlphabet.BYTE_LEVEL:
            spelled = [_BYTE_OF_CHARACTER.get(character) for character in token]
            return token.encode() if None in spelled else bytes(b for b in spelled if b is not None)
        if self.alphabet is TokenAlphabet.SENTENCE_PIECE:
            byte = _BYTE_TOKEN.fullmatch(token)
            return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()
        return self.decode([token_id], skip_special_tokens=False).encode()


async def _off_loop_if_long(length: int, work: Any, *arguments: Any) -> list[int]:
    if length <= _OFF_LOOP_CHARS:
        return list(work(*arguments))
    return list(await asyncio.to_thread(work, *arguments))


def _encode(tokenizer: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    return list(tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)


def _without_limits(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Truncation and padding saved by a training script would silently change prompts."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _never_prepend(tokenizer_json: str) -> str:
    """The same tokenizer for text that stands after a special token: no space is put before it."""
    return re.sub(r'"prepend_scheme"\s*:\s*"first"', '"prepend_scheme": "never"', tokenizer_json)


def _alphabet(decoder: Any) -> TokenAlphabet:
    kind = decoder.get("type") if isinstance(decoder, dict) else None
    if kind == "ByteLevel":
        return TokenAlphabet.BYTE_LEVEL
    if kind == "Sequence":
        kinds = [part.get("type") for part in decoder.get("decoders", [])]
        replaces = [part for part in decoder["decoders"] if part.get("type") == "Replace"]
        spaces = [{"pattern": part.get("pattern"), "content": part.get("content")} for part in replaces]
        if kinds == ["ByteLevel"]:
            return TokenAlphabet.BYTE_LEVEL
        if (
            "ByteFallback" in kinds
            and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}
            and spaces == [{"pattern": {"String": "\u2581"}, "content": " "}]
        ):
            return TokenAlphabet.SENTENCE_PIECE
    return TokenAlphabet.OPAQUE


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes spell themselves, the others take characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadCheckpoint(str(file), f"is not JSON: {error}") from None
    return loaded if isinstance(loaded, dict) else {}


def _token_text(value: Any) -> str:
    return str(value["content"]) if isinstance(value, dict) else str(value)


def _missing_remedy(directory: Path) -> str:
    if any((directory / name).is_file() for name in ("tokenizer.model", "spiece.model", "vocab.json")):
        return (
            "is missing, and there is only the older tokenizer format; convert it once with "
            "`transformers.AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)`"
        )
    return "is missing; a served model needs the `tokenizer.json` that its checkpoint was published with"
