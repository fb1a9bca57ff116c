"""From token ids, one step at a time, to text whose pieces join to the text of the whole."""

import codecs
from collections.abc import Iterable

from cluster.text.tokenizer import TokenAlphabet, Tokenizer

_CONTEXT_TOKENS = 8  #: of the prompt, so that an opaque decoder joins the first word rightly
_MAX_WAITING_TOKENS = 16  #: no character has more parts; what is not whole by then never will be
_REPLACEMENT = "\ufffd"


class Detokenizer:
    """The text of one output. A character comes out with its last byte, never as replacement marks before.

    `num_chars` counts what has come out, so that a token's offset in the text is known.
    """

    __slots__ = ("_decode", "_opaque", "_skipped", "_token_bytes", "num_chars")

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: list[int], *, skip_special_tokens: bool) -> None:
        self._skipped: frozenset[int] = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._token_bytes = tokenizer.token_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._opaque = (
            _WindowDecoder(tokenizer, prompt_token_ids[-_CONTEXT_TOKENS:], skip_special_tokens)
            if tokenizer.alphabet is TokenAlphabet.OPAQUE
            else None
        )
        self.num_chars = 0

    def feed(self, token_ids: Iterable[int]) -> str:
        """New text; what is not yet a whole character waits."""
        if self._opaque is not None:
            text = "".join([self._opaque.feed(token_id) for token_id in token_ids])
        else:
            skipped, spell = self._skipped, self._token_bytes
            text = self._decode(b"".join([spell(i) for i in token_ids if i not in skipped]))
        self.num_chars += len(text)
        return text

    def flush(self) -> str:
        """The rest at the end: replacement marks for bytes that never became a character."""
        text = self._opaque.flush() if self._opaque is not None else self._decode(b"", True)
        self.num_chars += len(text)
        return text


class _WindowDecoder:
    """Decodes a short window twice, with and without the new tokens, and gives the difference.

    For decoders that join tokens by rules of their own (WordPiece and the like). The window starts again
    whenever its text is whole, so its length does not grow with the output.
    """

    def __init__(self, tokenizer: Tokenizer, context: list[int], skip_special_tokens: bool) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._ids = list(context)
        self._read = len(context)  #: ids before this index have been given out
        self._start = 0

    def feed(self, token_id: int) -> str:
        self._ids.append(token_id)
        before = self._text(self._ids[self._start : self._read])
        after = self._text(self._ids[self._start :])
        unfinished = after.endswith(_REPLACEMENT) and len(self._ids) - self._read < _MAX_WAITING_TOKENS
        if len(after) <= len(before) or unfinished:
            return ""
        self._start, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def flush(self) -> str:
        before = self._text(self._ids[self._start : self._read])
        after = self._text(self._ids[self._start :])
        self._start = self._read = len(self._ids)
        return after[len(before) :]

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)
