"""Sentences and paragraphs about one topic of the knowledge table."""

import random
from collections.abc import Sequence

from scripts.demo_model.tables import POSITIONED, Topic
from scripts.demo_model.wording import capital

_ADDING = (
    "{It} {also_vp}.",
    "{It} {also_vp}.",
    "Besides, {it} {vp}.",
    "What is more, {it} {vp}.",
    "In addition, {it} {vp}.",
)
_PLAIN = ("{It} {vp}.", "{It} {vp}.", "{The} {vp}.")
_LINKED = ("{It} {vp}, and {it} {vp2}.", "{The} {vp} and {vp2}.", "{It} {vp}, and {it} {also_vp2}.")


def definition(rng: random.Random, topic: Topic) -> str:
    draw = rng.random()
    if draw < 0.85:
        return f"{capital(topic.phrase)} is {topic.kind}."
    if draw < 0.95:
        return f"{capital(topic.phrase)} is {topic.kind}, {topic.look}."
    return f"In simple words, {topic.phrase} is {topic.kind}."


def look(rng: random.Random, topic: Topic) -> str:
    form = rng.choice(
        ("{It} is {look}.", "{It} is {look}.", "Most people would call {them} {look}.", "{The} is {look}.")
    )
    return _fill(form, topic, look=topic.look)


def does(rng: random.Random, topic: Topic, count: int, *, opening: bool = False) -> list[str]:
    """``count`` of the things that the topic does, in one or more sentences that join well."""
    phrases = rng.sample(topic.does, min(count, len(topic.does)))
    sentences: list[str] = []
    while phrases:
        if len(phrases) >= 2 and rng.random() < 0.4:
            form, first, second = rng.choice(_LINKED), phrases.pop(), phrases.pop()
        else:
            form = rng.choice(_ADDING if sentences else _PLAIN)
            first, second = phrases.pop(), ""
        sentences.append(_fill(form, topic, vp=first, vp2=second))
    if opening and sentences:
        sentences[0] = (
            capital(topic.phrase) + sentences[0][len(topic.pronoun) :]
            if sentences[0].startswith(capital(topic.pronoun))
            else sentences[0]
        )
    return sentences


def where(rng: random.Random, topic: Topic, *, opening: bool = False) -> str:
    subject = topic.phrase if opening else topic.pronoun
    them = topic.many if opening or topic.pronoun != "it" else "it"
    if topic.name in POSITIONED:
        return f"{capital(subject)} comes {topic.where}."
    if topic.where.startswith(("the ", "about ", "far ", "beyond ", "above ", "all ")):
        return f"{capital(subject)} is {topic.where}."
    if topic.article == "N" and topic.category == "places":
        return f"{capital(subject)} lies {topic.where}."
    return rng.choice(
        (
            f"One can find {them} {topic.where}.",
            f"You can find {them} {topic.where}.",
            f"{capital(them)} can be found {topic.where}.",
        )
    )


def because(rng: random.Random, topic: Topic, *, opening: bool = False) -> str:
    them = liked(topic)
    if not opening and topic.pronoun == "it" and rng.random() < 0.5:
        them = "it"
    return rng.choice(
        (
            f"People like {them} because {topic.because}.",
            f"Many people are fond of {them} because {topic.because}.",
            f"What people like about {them} is this: {topic.because}.",
        )
    )


def liked(topic: Topic) -> str:
    """The topic in the form that agrees with its reason."""
    return topic.definite if topic.because.startswith(("it ", "its ")) else topic.many


def paragraph(rng: random.Random, topic: Topic) -> str:
    """Four to six sentences: what the topic is, what it does, where it is and why people like it."""
    middle: list[list[str]] = [does(rng, topic, rng.choice((2, 2, 3)))]
    if rng.random() < 0.5:
        middle.append([look(rng, topic)])
    if rng.random() < 0.7:
        middle.append([where(rng, topic)])
    rng.shuffle(middle)
    sentences = [definition(rng, topic)] + [sentence for group in middle for sentence in group]
    if rng.random() < 0.6:
        sentences.append(because(rng, topic))
    return " ".join(sentences)


def short_answer(rng: random.Random, topic: Topic) -> str:
    """One or two sentences that define the topic."""
    sentences = [definition(rng, topic)]
    if rng.random() < 0.7:
        sentences += does(rng, topic, 1)
    return " ".join(sentences)


def numbered_facts(rng: random.Random, topic: Topic, count: int) -> str:
    facts = [f"{capital(topic.phrase)} {phrase}." for phrase in rng.sample(topic.does, min(count, len(topic.does)))]
    if len(facts) < count:
        facts.append(f"{capital(topic.phrase)} is {topic.kind}.")
    return "\n".join(f"{number}. {fact}" for number, fact in enumerate(facts, 1))


def comparison(rng: random.Random, left: Topic, right: Topic) -> str:
    sentences = [
        rng.choice(
            (
                f"{capital(left.phrase)} is {left.kind}, while {right.phrase} is {right.kind}.",
                f"{capital(left.phrase)} is {left.kind}. {capital(right.phrase)}, on the other hand, is {right.kind}.",
            )
        ),
        rng.choice(
            (
                f"{capital(left.definite)} {rng.choice(left.does)}, but {right.definite} {rng.choice(right.does)}.",
                f"One is {left.look}, the other is {right.look}.",
            )
        ),
    ]
    return " ".join(sentences)


def varied(rng: random.Random, topic: Topic, used: Sequence[str]) -> str:
    """More about a topic of which the sentences in ``used`` have been said already."""
    fresh = [phrase for phrase in topic.does if not any(phrase in text for text in used)] or list(topic.does)
    rng.shuffle(fresh)
    sentences = [_fill(rng.choice(("{The} {vp}.", "{It} {also_vp}.")), topic, vp=fresh[0], vp2="")]
    if len(fresh) > 1:
        sentences.append(_fill(rng.choice(_ADDING), topic, vp=fresh[1], vp2=""))
    if rng.random() < 0.6:
        sentences.append(rng.choice((where, because))(rng, topic))
    return " ".join(sentences)


def _with_also(phrase: str) -> str:
    """The verb phrase with "also" in the place where English wants it."""
    verb, rest = phrase.split(" ", 1) if " " in phrase else (phrase, "")
    if verb in ("is", "was", "were", "can", "may", "must", "should"):
        return f"{verb} also {rest}"
    return f"also {phrase}"


def _fill(form: str, topic: Topic, **extra: str) -> str:
    extra |= {f"also_{key}": _with_also(phrase) for key, phrase in extra.items() if key.startswith("vp")}
    it = topic.pronoun
    them = "it" if it == "it" else topic.many
    words = {"it": it, "It": capital(it), "The": capital(topic.definite), "them": them}
    return form.format(**words, **extra)
