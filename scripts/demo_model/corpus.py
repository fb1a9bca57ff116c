"""The training text as a stream of documents: dialogues and plain text, the same for the same seed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from scripts.demo_model import articles
from scripts.demo_model.dialogues import DialogueWriter
from scripts.demo_model.stories import Cast, Storyteller
from scripts.demo_model.tables import Tables, load_tables
from scripts.demo_model.wording import capital, with_article

PLAIN_SHARE = 0.15
_OPENINGS = (
    "Once upon a time there was {x}. ",
    "Once upon a time there was {x}. ",
    "Once there was {x}. ",
    "There was once {x}. ",
    "Long ago there was {x}. ",
    "This is the story of {x}. ",
    "In a land far away there was {x}. ",
)


_SPOTS = (
    " by the sea",
    " on a hill",
    " in a small village",
    " at the edge of the forest",
    " on a rocky coast",
    " that nobody visited",
    " at the end of a long road",
    " that was very old",
)


@dataclass(frozen=True)
class Document:
    """Either chat ``messages`` or a plain ``text``; the other is empty."""

    messages: tuple[tuple[str, str], ...] = ()
    text: str = ""


class CorpusWriter:
    """Writes documents one by one; ``rng`` decides everything."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._dialogues = DialogueWriter(tables)
        self._storyteller = Storyteller(tables)

    def write(self, rng: random.Random) -> Document:
        if rng.random() < PLAIN_SHARE:
            return Document(text=self._plain(rng))
        messages = self._dialogues.write(rng).messages()
        return Document(messages=tuple((message["role"], message["content"]) for message in messages))

    def _plain(self, rng: random.Random) -> str:
        draw = rng.random()
        if draw < 0.40:
            return self._opened_story(rng)
        if draw < 0.52:
            return self._storyteller.tell(rng, self._storyteller.draw_cast(rng))
        topic = rng.choice(self._tables.topics)
        if draw < 0.85:
            return articles.paragraph(rng, topic)
        if draw < 0.92:
            return f"{capital(topic.name)}\n\n{articles.paragraph(rng, topic)}"
        if draw < 0.96:
            answered = rng.choice(self._tables.questions)
            return rng.choice(answered.answers)
        other = rng.choice(
            [other for other in self._tables.topics if other.category == topic.category and other != topic]
        )
        return f"{articles.paragraph(rng, topic)} {articles.paragraph(rng, other)}"

    def _opened_story(self, rng: random.Random) -> str:
        """A story that begins with "Once upon a time there was ..." and goes on with what was named."""
        cast = self._storyteller.draw_cast(rng)
        if not cast.hero and not cast.name and (cast.thing or cast.place):
            noun = cast.thing or cast.place.removeprefix("the ")
            opening = rng.choice(_OPENINGS).format(x=with_article(noun) + rng.choice(("", "", *_SPOTS)))
            return opening + (
                self._storyteller.continue_object(rng, cast) if rng.random() < 0.6 else self._without_opening(rng, cast)
            )
        if not cast.hero:
            return self._storyteller.tell(rng, cast)
        name = cast.name or self._storyteller.draw_name(rng, cast.hero)
        hero = with_article(cast.hero)
        story = self._without_opening(rng, replace(cast, name=name))
        for known in (
            f"{hero} called {name}",
            f"{hero} named {name}",
            f"{name}, {hero},",
            f"{hero} by the name of {name}",
        ):
            story = story.replace(f"{known} {known}", known).replace(known, name).replace(capital(known), name)
        return rng.choice(_OPENINGS).format(x=rng.choice((f"{hero} called {name}", f"{hero} named {name}"))) + story

    def _without_opening(self, rng: random.Random, cast: Cast) -> str:
        """A story that can follow a sentence which has introduced its hero or its thing."""
        while True:
            story = self._storyteller.tell(rng, cast)
            if not any(opening in story for opening in ("Once ", "There once", "There was once")):
                return story


def documents(seed: int) -> Iterator[Document]:
    """An endless stream of documents that depends only on ``seed``."""
    rng = random.Random(seed)
    writer = CorpusWriter(load_tables())
    while True:
        yield writer.write(rng)
