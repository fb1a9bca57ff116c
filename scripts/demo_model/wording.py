"""Small operations on words and sentences that every generator of the corpus uses."""

# ruff: noqa: SIM905 - a long list of words reads best as one string

import random
from collections.abc import Sequence

_ONSETS = "b br c ch cl d dr f fl g gl gr h j k kl l m n p pl qu r s sh sk sn st t th tr v w z".split()
_VOWELS = "a e i o u oo ee ai".split()
_CODAS = "n r l m b x t k ck nd rt sh p ng zz".split() + [""] * 8
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def capital(text: str) -> str:
    """The text with a capital first letter; the rest stays."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    return (
        f"an {noun}"
        if noun[0].lower() in "aeiou" and not noun.startswith(("unicorn", "ukulele", "eu"))
        else f"a {noun}"
    )


def listing(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def invented_word(rng: random.Random) -> str:
    """A word that is in no dictionary, so that copying it has to be learned and cannot be remembered."""
    syllables = rng.choice((1, 2, 2, 2, 3))
    word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))
    return word if len(word) > 2 else word + "m"


def misspelled(rng: random.Random, text: str) -> str:
    """The text with one slip of the fingers in a word of at least four letters."""
    words = text.split(" ")
    places = [place for place, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if not places:
        return text
    place = rng.choice(places)
    word = words[place]
    at = rng.randrange(1, len(word) - 1)
    slip = rng.randrange(4)
    if slip == 0:
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    elif slip == 1:
        word = word[:at] + word[at + 1 :]
    elif slip == 2:
        word = word[:at] + word[at] + word[at:]
    else:
        word = word[:at] + rng.choice(_LETTERS) + word[at + 1 :]
    words[place] = word
    return " ".join(words)


def as_typed(rng: random.Random, prompt: str) -> str:
    """A clean prompt as somebody might type it: in small letters, without its mark, with a slip, politely."""
    text = prompt
    draw = rng.random()
    if draw < 0.06 and text[-1:].isalnum() is False and len(text) > 12:
        text = (
            rng.choice(("Please ", "Can you please ", "Hi! ", "Hello, ", "Hey, ", "OK, ", "So, "))
            + text[0].lower()
            + text[1:]
        )
    elif draw < 0.10:
        text = text + rng.choice((" Thanks!", " Please.", " Thank you.", " I am curious.", " It is for my daughter."))
    draw = rng.random()
    if draw < 0.22:
        text = text.lower()
    elif draw < 0.25:
        text = text.upper()
    if rng.random() < 0.28:
        text = text.rstrip(".?!")
    if rng.random() < 0.06:
        text = misspelled(rng, text)
    return text
