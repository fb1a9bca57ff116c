"""Short stories: a plot from the table whose roles are given to the nouns that somebody asked for."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scripts.demo_model.tables import PERSONS, SEASONS, THEMES, Plot, Tables, Topic, load_story_words
from scripts.demo_model.wording import capital, invented_word, with_article

_WORDS = load_story_words()
_HEROES = _WORDS["heroes"]
_FEMALE, _MALE = frozenset(_WORDS["female"]), frozenset(_WORDS["male"])
# Things of nature that one can travel to in a tale, but not live beside.
_MOVING = frozenset(_WORDS["moving"])
_UNCOUNTED = frozenset(_WORDS["uncounted"])
_PRONOUNS = (("he", "him", "his"), ("she", "her", "her"))


@dataclass(frozen=True)
class Cast:
    """Who and what a story is about; an empty field is free for the story to choose.

    ``second`` is a further thing, ``adjective`` describes the hero ``wish`` is a verb phrase for what it dreams of.
    """

    hero: str = ""
    name: str = ""
    helper: str = ""
    thing: str = ""
    second: str = ""
    place: str = ""
    theme: str = ""
    adjective: str = ""
    wish: str = ""

    def asked_for(self) -> tuple[str, ...]:
        """The nouns that the story must name, with articles as in "a story about ..."."""
        hero = with_article(f"{self.adjective} {self.hero}".strip()) if self.hero else ""
        if self.name:
            hero = f"{hero} named {self.name}" if hero else self.name
        if self.wish:
            hero += f" who wants to {self.wish}"
        nouns = [
            hero,
            with_article(self.helper) if self.helper else "",
            self.thing if self.thing in _UNCOUNTED else _a(self.thing),
        ]
        return tuple(noun for noun in (*nouns, _a(self.second), self.place, self.theme) if noun)


class Storyteller:
    """Draws casts and tells stories; holds the word lists, no state."""

    def __init__(self, tables: Tables) -> None:
        self._plots = tables.plots
        self._female_names = tables.female_names
        self._male_names = tables.male_names
        animals = [topic.name for topic in tables.topics if topic.category == "animals"]
        self._animate = [*animals, *sorted(PERSONS), *_HEROES, *_WORDS["beasts"]]
        solid = [topic.name for topic in tables.topics if topic.article in ("a", "an") and topic.category == "things"]
        growing = [
            topic.name for topic in tables.topics if topic.article in ("a", "an") and topic.category == "plants_food"
        ]
        self._things = [*solid, *solid, *growing, *(noun for noun in tables.nouns if noun not in _WORDS["beasts"])]
        self._places = [
            topic.definite
            for topic in tables.topics
            if topic.category in ("nature", "places")
            and topic.article in ("a", "an", "the")
            and topic.name not in _MOVING
        ]

    def draw_cast(self, rng: random.Random) -> Cast:
        """One to three nouns of roles that go together; a hero may have an adjective or a wish."""
        cast = self._draw_nouns(rng)
        if cast.hero and not cast.helper and " " not in cast.hero and rng.random() < 0.2:
            if rng.random() < 0.6:
                return replace(cast, adjective=rng.choice(_WORDS["adjectives"]))
            return replace(cast, wish=rng.choice(_WORDS["wishes"]))
        return cast

    def _draw_nouns(self, rng: random.Random) -> Cast:
        draw = rng.random()
        hero = rng.choice(self._animate) if rng.random() < 0.85 else rng.choice(_HEROES)
        if rng.random() < 0.05:
            hero = invented_word(rng)
        thing = rng.choice(self._things) if rng.random() < 0.8 else invented_word(rng)
        place = rng.choice(self._places)
        if draw < 0.25:
            return Cast(hero=hero)
        if draw < 0.53:
            return Cast(hero=hero, thing=thing)
        if draw < 0.57:
            return Cast(thing=thing)
        if draw < 0.60:
            return Cast(thing=thing, second=rng.choice([noun for noun in self._things if noun != thing]))
        if draw < 0.65:
            return Cast(hero=hero if rng.random() < 0.8 else "", thing=thing, place=place)
        if draw < 0.72:
            return Cast(place=place)
        if draw < 0.80:
            return Cast(hero=hero, place=place)
        if draw < 0.86:
            return Cast(hero=hero, helper=rng.choice(self._animate))
        if draw < 0.90:
            return Cast(theme=rng.choice(THEMES))
        if draw < 0.95:
            hero = rng.choice(_HEROES)
            return Cast(hero=hero, name=self.draw_name(rng, hero), thing=thing if rng.random() < 0.6 else "")
        return Cast(name=self.draw_name(rng), thing=thing if rng.random() < 0.5 else "")

    def draw_name(self, rng: random.Random, hero: str = "") -> str:
        """A name that suits the hero; one in four is invented."""
        if rng.random() < 0.25:
            return capital(invented_word(rng))
        if hero in _FEMALE or hero in _MALE:
            return rng.choice(self._female_names if hero in _FEMALE else self._male_names)
        return rng.choice(self._female_names + self._male_names)

    def cast_for(self, topic: Topic) -> Cast:
        """The cast of a story about a topic of the knowledge table."""
        if topic.category == "animals" or topic.name in PERSONS:
            return Cast(hero=topic.name)
        if topic.name in _UNCOUNTED or (topic.article in ("a", "an") and topic.category not in ("nature", "places")):
            return Cast(thing=topic.name)
        if topic.category in ("nature", "places") and topic.name not in (*SEASONS, "space"):
            return Cast(place=topic.definite)
        return Cast(theme=topic.phrase)

    def continue_object(self, rng: random.Random, cast: Cast) -> str:
        """The rest of a story about a lonely thing or place that has been named already."""
        plot = next(plot for plot in self._plots if plot.name == "object")
        words = self._roles(rng, plot, cast)
        return " ".join(capital(rng.choice(beat).format(**words)) for beat in plot.beats[1:])

    def tell(self, rng: random.Random, cast: Cast, *, length: int = 0) -> str:
        """A story in which everything of the cast appears; ``length`` > 0 limits the number of beats."""
        plot = self._choose_plot(rng, cast)
        words = self._roles(rng, plot, cast)
        beats = [rng.choice(beat).format(**words) for beat in plot.beats]
        text = " ".join(beats)
        missing = self._missing(rng, cast, words, text)
        if missing:
            beats.insert(1, missing)
        _add_second(rng, cast, words, beats)
        _add_wish(rng, cast, words, beats)
        _add_adjective(cast, words["a_hero"], beats)
        if 0 < length < len(beats):
            beats = [*beats[: length - 1], beats[-1]]
        return " ".join(capital(beat) for beat in beats)

    def _choose_plot(self, rng: random.Random, cast: Cast) -> Plot:
        def fits(plot: Plot) -> bool:
            if cast.theme:
                return "theme" in plot.roles
            if "theme" in plot.roles:
                return False
            if plot.name == "object":
                named = cast.thing or (cast.place.startswith("the ") and cast.place)
                return bool(named) and not cast.hero and not cast.name and named not in _UNCOUNTED
            if cast.place.removeprefix("the ") in _MOVING or (cast.place and not cast.place.startswith("the ")):
                return plot.name == "journey"
            if cast.place:
                return "place" in plot.roles
            if cast.helper:
                return "helper" in plot.roles
            return not cast.thing or "thing" in plot.roles

        return rng.choice([plot for plot in self._plots if fits(plot)])

    def _roles(self, rng: random.Random, plot: Plot, cast: Cast) -> dict[str, str]:
        hero = cast.hero or rng.choice(self._animate if not cast.name else self._heroes_for(cast.name))
        helper = cast.helper or rng.choice([helper for helper in _WORDS["helpers"] if hero not in helper])
        thing = cast.thing or rng.choice(_WORDS["things"])
        if plot.name == "object" and cast.place and not cast.thing:
            thing = cast.place.removeprefix("the ")
        place = cast.place or rng.choice(_WORDS["far"])
        spot = rng.choice(_WORDS["spots"])
        name = cast.name or self.draw_name(rng, hero)
        he, him, his = self._pronouns_of(rng, hero, name)
        helper_he, helper_him, helper_his = _pronouns(rng, helper)
        words = {
            "hero": hero,
            "a_hero": with_article(hero),
            "name": name,
            "he": he,
            "him": him,
            "his": his,
            "himself": {"he": "himself", "she": "herself"}[he],
            "helper": helper,
            "a_helper": with_article(helper),
            "a_helper_cap": capital(with_article(helper)),
            "helper_he": helper_he,
            "helper_him": helper_him,
            "helper_his": helper_his,
            "thing": thing,
            "a_thing": f"some {thing}" if thing in _UNCOUNTED else with_article(thing),
            "thing_look": rng.choice(_WORDS["looks"]),
            "place": place,
            "in_place": spot,
            "in_place_cap": capital(spot),
            "weather": rng.choice(_WORDS["weather"]),
            "season": rng.choice(SEASONS),
            "direction": rng.choice(("north", "south", "east", "west", "river", "hills")),
            "theme": cast.theme or rng.choice(THEMES),
        }
        for key in ("he", "his", "a_hero", "a_helper", "a_thing"):
            words[capital(key)] = capital(words[key])
        return words

    def _heroes_for(self, name: str) -> tuple[str, ...]:
        other = _MALE if name in self._female_names else _FEMALE if name in self._male_names else frozenset()
        return tuple(hero for hero in _HEROES if hero not in other)

    def _pronouns_of(self, rng: random.Random, hero: str, name: str) -> tuple[str, str, str]:
        if hero not in _FEMALE and hero not in _MALE:
            if name in self._female_names:
                return _PRONOUNS[1]
            if name in self._male_names:
                return _PRONOUNS[0]
        return _pronouns(rng, hero)

    def _missing(self, rng: random.Random, cast: Cast, words: dict[str, str], text: str) -> str:
        """One sentence with what was asked for and did not come up in the plot."""
        if cast.thing and cast.thing not in text:
            return rng.choice(
                (f"In {words['his']} house stood {words['a_thing']}.", f"{words['name']} owned {words['a_thing']}.")
            )
        if cast.place and cast.place.removeprefix("the ") not in text:
            return f"It happened near {cast.place}."
        if cast.hero and cast.hero not in text:
            return f"{words['name']} was {words['a_hero']}."
        return ""


def _add_second(rng: random.Random, cast: Cast, words: dict[str, str], beats: list[str]) -> None:
    """The further thing appears near the beginning and once more at the end."""
    if not cast.second:
        return
    a_second = with_article(cast.second)
    first = (f"Beside it there was {a_second}.", f"{words['name']} also had {a_second}.", f"Near it stood {a_second}.")
    last = (
        f"And the {cast.second} was always with them.",
        f"The {cast.second} still reminds them of it.",
        f"Even the {cast.second} seemed to smile.",
    )
    beats.insert(1, rng.choice(first))
    beats.append(rng.choice(last))


def _add_wish(rng: random.Random, cast: Cast, words: dict[str, str], beats: list[str]) -> None:
    """The wish is spoken of at the beginning and comes true at the end."""
    if not cast.wish:
        return
    name, he = words["name"], words["he"]
    first = (f"{name} wanted to {cast.wish}.", f"More than anything {he} wanted to {cast.wish}.")
    last = (f"And in the end {he} really could {cast.wish}.", f"And one fine day {name} learned to {cast.wish}.")
    beats.insert(1, rng.choice(first))
    beats.append(rng.choice(last))


def _add_adjective(cast: Cast, a_hero: str, beats: list[str]) -> None:
    """The hero is described where it is first named."""
    if not cast.adjective:
        return
    described = with_article(f"{cast.adjective} {cast.hero}")
    for known, new in ((a_hero, described), (capital(a_hero), capital(described))):
        for place, beat in enumerate(beats):
            if known in beat:
                beats[place] = beat.replace(known, new, 1)
                return


def request_nouns(rng: random.Random, nouns: Sequence[str]) -> str:
    """The nouns of a request, joined as people write them."""
    if len(nouns) == 1:
        return nouns[0]
    joiner = rng.choice((" and ", " and ", " and ", ", ", " with ", " & "))
    return joiner.join(nouns)


def _a(noun: str) -> str:
    return with_article(noun) if noun else ""


def _pronouns(rng: random.Random, noun: str) -> tuple[str, str, str]:
    if noun in _FEMALE:
        return _PRONOUNS[1]
    if noun in _MALE:
        return _PRONOUNS[0]
    return rng.choice(_PRONOUNS)
