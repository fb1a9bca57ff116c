"""The pieces of a detokenized stream join to what the tokenizer's own decoder says of the whole."""

import functools

import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from cluster.text.detokenizer import Detokenizer
from cluster.text.tokenizer import TokenAlphabet, Tokenizer
from tests.cluster.gateway_world import served_model

BYTE_LEVEL = served_model().tokenizer
IDS = st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1), max_size=40)


@functools.cache
def sentence_piece() -> Tokenizer:
    """Llama 2's kind: U+2581 for spaces, bytes as a last resort."""
    words = ["\u2581the", "\u2581fox", "\u2581", "t", "h", "e", "f", "o", "x", "\u2581é"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(tokenizer.to_str(), {})


@functools.cache
def word_piece() -> Tokenizer:
    """A decoder with rules of its own."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(["the quick brown fox jumps over lazy dogs"] * 5, trainer)
    return Tokenizer(tokenizer.to_str(), {})


def pieces(tokenizer: Tokenizer, ids: list[int], skip: bool = True, prompt: list[int] | None = None) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt or [], skip_special_tokens=skip)
    parts = [detokenizer.feed((token_id,)) for token_id in ids]
    parts.append(detokenizer.flush())
    assert detokenizer.num_chars == sum(map(len, parts))
    return parts


@given(IDS, st.booleans())
def test_byte_level_pieces_join_to_the_whole(ids: list[int], skip: bool) -> None:
    assert "".join(pieces(BYTE_LEVEL, ids, skip)) == BYTE_LEVEL.decode(ids, skip_special_tokens=skip)


@given(st.text(max_size=40))
def test_valid_text_never_shows_a_replacement_mark(text: str) -> None:
    ids = BYTE_LEVEL.encode_now(text, False)
    parts = pieces(BYTE_LEVEL, ids, skip=False)
    assert "".join(parts) == text
    assert [part.count("\ufffd") for part in parts] == [0] * len(parts) or "\ufffd" in text


@given(st.text(alphabet="the fox é漢👩\u200d🎉", min_size=1, max_size=30))
def test_sentence_piece_text_comes_whole(text: str) -> None:
    tokenizer = sentence_piece()
    assert tokenizer.alphabet is TokenAlphabet.SENTENCE_PIECE
    parts = pieces(tokenizer, tokenizer.encode_now(text, False))
    assert "".join(parts) == " " + text  # a continuation keeps the space that a whole text would lose
    assert not any("\ufffd" in part for part in parts)


@given(st.lists(st.sampled_from(["the", "quick", "brown", "foxes", "lazy"]), min_size=2, max_size=12))
def test_a_decoder_with_its_own_rules_continues_the_prompt(words: list[str]) -> None:
    tokenizer = word_piece()
    assert tokenizer.alphabet is TokenAlphabet.OPAQUE
    ids = tokenizer.encode_now(" ".join(words), False)
    prompt, output = ids[:1], ids[1:]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    assert "".join(pieces(tokenizer, output, prompt=prompt)) == whole[len(before) :]


def test_a_broken_character_shows_at_the_end_only() -> None:
    ids = BYTE_LEVEL.encode_now("👩", False)
    assert len(ids) > 1
    *whole, last = pieces(BYTE_LEVEL, ids[:-1])
    assert whole == [""] * len(whole)
    assert last == "\ufffd"


def test_an_id_that_the_vocabulary_lacks_is_no_text() -> None:
    assert "".join(pieces(BYTE_LEVEL, [BYTE_LEVEL.vocab_size + 7])) == ""


def test_every_byte_has_a_token() -> None:
    spelled = {BYTE_LEVEL.token_bytes(token_id) for token_id in range(3, 3 + 256)}
    assert spelled == {bytes([byte]) for byte in range(256)}
