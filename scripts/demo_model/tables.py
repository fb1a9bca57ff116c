"""Loads the hand-written tables in ``data/``: what the corpus knows before any sentence is built."""

# ruff: noqa: SIM905 - a long list of words reads best as one string

from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"

PERSONS = frozenset("friend teacher doctor farmer baker sailor king queen pirate knight astronaut scientist".split())
SEASONS = ("winter", "spring", "summer", "autumn")
# Topics whose "where" says a time or a position and not a place where one could look for them.
POSITIONED = frozenset({*SEASONS, "morning", "night"})
THEMES = (
    "friendship",
    "love",
    "happiness",
    "courage",
    "hope",
    "patience",
    "peace",
    "freedom",
    "time",
    "kindness",
    "honesty",
    "trust",
    "luck",
)


@dataclass(frozen=True)
class Topic:
    """One row of the knowledge table; ``does`` holds verb phrases in the third person singular."""

    name: str
    article: str
    kind: str
    look: str
    does: tuple[str, ...]
    where: str
    because: str
    category: str

    @property
    def phrase(self) -> str:
        """The noun with its article, as it stands inside a sentence."""
        return self.name if self.article in "-N" else f"{self.article} {self.name}"

    @property
    def definite(self) -> str:
        """The noun after it has been introduced."""
        return self.name if self.article in "-N" else f"the {self.name}"

    @property
    def pronoun(self) -> str:
        if self.name == "king":
            return "he"
        if self.name == "queen":
            return "she"
        return self.definite if self.name in PERSONS else "it"

    @property
    def many(self) -> str:
        """How people speak of the topic in general."""
        return plural(self.name) if self.article in ("a", "an") else self.phrase


@dataclass(frozen=True)
class Answered:
    """Phrasings of one question and the answers that fit every phrasing."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class HowTo:
    goal: str
    gerund: str
    tips: tuple[str, ...]


@dataclass(frozen=True)
class Plot:
    """A story line: the roles it needs and, sentence by sentence, the variants."""

    name: str
    roles: tuple[str, ...]
    beats: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Tables:
    topics: tuple[Topic, ...]
    questions: tuple[Answered, ...]
    small_talk: tuple[Answered, ...]
    how_tos: tuple[HowTo, ...]
    plots: tuple[Plot, ...]
    poems: tuple[str, ...]
    capitals: tuple[tuple[str, str], ...]
    female_names: tuple[str, ...]
    male_names: tuple[str, ...]
    nouns: tuple[str, ...]
    system_prompts: tuple[tuple[str, str], ...]


def plural(noun: str) -> str:
    """The plural of an English noun; the irregular ones of the tables are listed."""
    irregular = {
        "mouse": "mice",
        "wolf": "wolves",
        "sheep": "sheep",
        "deer": "deer",
        "goose": "geese",
        "leaf": "leaves",
        "knife": "knives",
        "shelf": "shelves",
        "scarf": "scarves",
        "ox": "oxen",
        "snowman": "snowmen",
        "potato": "potatoes",
        "tomato": "tomatoes",
        "volcano": "volcanoes",
        "mosquito": "mosquitoes",
        "tooth": "teeth",
        "moose": "moose",
        "salmon": "salmon",
        "squid": "squid",
        "scissors": "scissors",
    }
    if noun in irregular:
        return irregular[noun]
    if noun.endswith(("s", "x", "ch", "sh", "z")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _topics(path: Path) -> list[Topic]:
    rows = []
    for line in _lines(path):
        name, article, kind, look, does, where, because = line.split("|")
        rows.append(Topic(name, article, kind, look, tuple(does.split(";")), where, because, path.stem))
    return rows


def _answered(path: Path) -> tuple[Answered, ...]:
    blocks: list[tuple[list[str], list[str]]] = []
    for line in _lines(path):
        mark, text = line.split(" ", 1)
        if mark == "Q":
            blocks.append((text.split("|"), []))
        else:
            blocks[-1][1].append(text)
    return tuple(Answered(tuple(questions), tuple(answers)) for questions, answers in blocks)


def _plots(path: Path) -> tuple[Plot, ...]:
    heads: list[tuple[str, tuple[str, ...]]] = []
    beats: list[list[tuple[str, ...]]] = []
    for line in _lines(path):
        if line.startswith("plot "):
            name, roles = line.removeprefix("plot ").split(": ")
            heads.append((name, tuple(roles.split())))
            beats.append([])
        else:
            beats[-1].append(tuple(line.split(" | ")))
    return tuple(Plot(name, roles, tuple(body)) for (name, roles), body in zip(heads, beats, strict=True))


def load_tables() -> Tables:
    """Every table of ``data/``, in a fixed order."""
    topics = [topic for path in sorted((DATA / "topics").glob("*.txt")) for topic in _topics(path)]
    known = {topic.name for topic in topics}
    female_names, male_names = (tuple(line.split()) for line in _lines(DATA / "names.txt"))
    nouns: list[str] = []
    for line in _lines(DATA / "nouns.txt"):
        words = line.replace("polar bear", "polar_bear").replace("teddy bear", "teddy_bear")
        nouns += [word.replace("_", " ") for word in words.replace("guinea pig", "guinea_pig").split()]
    return Tables(
        topics=tuple(topics),
        questions=_answered(DATA / "questions.txt"),
        small_talk=_answered(DATA / "small_talk.txt"),
        how_tos=tuple(
            HowTo(goal, gerund, tuple(tips.split(";")))
            for goal, gerund, tips in (line.split("|") for line in _lines(DATA / "tips.txt"))
        ),
        plots=_plots(DATA / "stories.txt"),
        poems=tuple(_lines(DATA / "poems.txt")),
        capitals=tuple((land, town) for land, town in (line.split("|") for line in _lines(DATA / "capitals.txt"))),
        female_names=female_names,
        male_names=male_names,
        nouns=tuple(sorted(set(nouns) - known)),
        system_prompts=tuple(
            (style, text) for style, text in (line.split("|", 1) for line in _lines(DATA / "system_prompts.txt"))
        ),
    )


def load_story_words() -> dict[str, tuple[str, ...]]:
    """The word lists of ``data/story_words.txt`` by their keys."""
    pairs = (line.split(": ", 1) for line in _lines(DATA / "story_words.txt"))
    return {key: tuple(words.split(", ")) for key, words in pairs}
