"""What people ask about one topic of the knowledge table, with the answers and the turns that may follow."""

import random
from collections.abc import Sequence

from scripts.demo_model import articles, prompts
from scripts.demo_model.stories import Storyteller
from scripts.demo_model.tables import Tables, Topic
from scripts.demo_model.wording import capital

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
Turns = list[tuple[str, str]]


class TopicTurns:
    """Each public method draws a topic and returns one or more (user, assistant) turns about it."""

    def __init__(self, tables: Tables, storyteller: Storyteller) -> None:
        self._tables = tables
        self._storyteller = storyteller
        self._by_category: dict[str, list[Topic]] = {}
        for topic in tables.topics:
            self._by_category.setdefault(topic.category, []).append(topic)

    def about(self, rng: random.Random) -> Turns:
        topic = rng.choice(self._tables.topics)
        answer = articles.paragraph(rng, topic)
        return [(ask(rng, prompts.ABOUT, topic), answer), *self._follow(rng, topic, [answer])]

    def what(self, rng: random.Random) -> Turns:
        topic = rng.choice(self._tables.topics)
        answer = articles.short_answer(rng, topic)
        return [(ask(rng, prompts.WHAT, topic), answer), *self._follow(rng, topic, [answer])]

    def one_aspect(self, rng: random.Random) -> Turns:
        topic = rng.choice(self._tables.topics)
        draw = rng.randrange(3)
        if draw == 0:
            asked, answer = list(prompts.WHERE), articles.where(rng, topic, opening=True)
            if rng.random() < 0.4:
                answer += " " + articles.does(rng, topic, 1)[0]
        elif draw == 1:
            asked, answer = list(prompts.BECAUSE), articles.because(rng, topic, opening=True)
            if rng.random() < 0.6:
                answer += " " + " ".join(articles.does(rng, topic, 1))
        else:
            asked, answer = list(prompts.DOES), " ".join(articles.does(rng, topic, rng.choice((2, 3)), opening=True))
        return [(ask(rng, asked, topic), answer), *self._follow(rng, topic, [answer])]

    def likes(self, rng: random.Random) -> Turns:
        topic = rng.choice(self._tables.topics)
        asked = rng.choice(prompts.LIKES)
        reason = f"many people are fond of {articles.liked(topic)} because {topic.because}"
        if "you" in asked:
            opening = rng.choice(("I am only a program, but", "I cannot really like things, but"))
            answer = f"{opening} {reason}."
        else:
            opening = rng.choice(("How nice!", "I understand that.", "That is good to hear.", "A good choice!"))
            answer = f"{opening} {capital(reason)}."
        answer += " " + articles.does(rng, topic, 1, opening=True)[0]
        return [(named(asked, topic), answer), *self._follow(rng, topic, [answer])]

    def facts(self, rng: random.Random) -> Turns:
        topic = rng.choice(self._tables.topics)
        if rng.random() < 0.35:
            answer = f"{capital(topic.phrase)} {rng.choice(topic.does)}."
            return [(ask(rng, prompts.ONE_FACT, topic), answer)]
        count = rng.choice((2, 3, 3, 3, 4))
        opening = rng.choice(("", f"Here are {NUMBERS[count]} facts about {topic.many}:\n"))
        number = rng.choice((NUMBERS[count], NUMBERS[count], str(count)))
        asked = ask(rng, prompts.FACTS, topic).replace("{n}", number)
        return [(capital(asked), opening + articles.numbered_facts(rng, topic, count))]

    def compare(self, rng: random.Random) -> Turns:
        left, right = rng.sample(rng.choice(list(self._by_category.values())), 2)
        asked = rng.choice(prompts.COMPARE).format(x=left.phrase, y=right.phrase, xs=left.many, ys=right.many)
        return [(capital(asked), articles.comparison(rng, left, right))]

    def poem(self, rng: random.Random) -> Turns:
        topic = rng.choice(self._tables.topics)
        return [(ask(rng, prompts.POEM, topic), self._poem_on(rng, topic))]

    def _poem_on(self, rng: random.Random, topic: Topic) -> str:
        poem = rng.choice(self._tables.poems).replace(" / ", "\n")
        return poem.format(x=topic.definite, X=capital(topic.definite), noun=topic.name, look=topic.look)

    def letter(self, rng: random.Random) -> Turns:
        topic, name = rng.choice(self._tables.topics), self._storyteller.draw_name(rng)
        asked = rng.choice(prompts.LETTER).format(name=name, x=topic.phrase, xs=topic.many)
        opening = rng.choice(
            (
                f"how are you? Today I want to write to you about {topic.many}.",
                f"I have been thinking about {topic.many} all day.",
                f"I hope you are well. Do you remember how we talked about {topic.many}?",
            )
        )
        body = " ".join([*articles.does(rng, topic, 2, opening=True), articles.because(rng, topic)])
        closing = rng.choice(("Write back soon!", "I hope to see you soon.", "Take good care of yourself."))
        return [(asked, f"Dear {name},\n{opening} {body} {closing}\nYour friend")]

    def _follow(self, rng: random.Random, topic: Topic, said: list[str]) -> Turns:
        """Zero or more further turns after an answer about ``topic``."""
        turns: Turns = []
        while rng.random() < 0.3 and len(turns) < 3:
            kind = rng.choice(("more", "more", "topic", "topic", "because", "where", "look", "story", "poem", "thanks"))
            if kind == "topic":
                topic = rng.choice(self._tables.topics)
                answer = articles.paragraph(rng, topic)
                turns.append((ask(rng, prompts.FOLLOW_TOPIC, topic), answer))
                said = [answer]
                continue
            turns.append(self._follow_up(rng, kind, topic, said))
            said = [*said, turns[-1][1]]
        return turns

    def _follow_up(self, rng: random.Random, kind: str, topic: Topic, said: list[str]) -> tuple[str, str]:
        if kind == "more":
            return rng.choice(prompts.MORE), articles.varied(rng, topic, said)
        if kind == "because":
            return rng.choice(prompts.FOLLOW_BECAUSE), articles.because(rng, topic, opening=True)
        if kind == "where":
            return rng.choice(prompts.FOLLOW_WHERE), articles.where(rng, topic, opening=True)
        if kind == "look":
            return rng.choice(prompts.FOLLOW_LOOK), f"{capital(topic.phrase)} is {topic.look}."
        if kind == "poem":
            return rng.choice(prompts.FOLLOW_POEM), self._poem_on(rng, topic)
        if kind == "story":
            return rng.choice(prompts.FOLLOW_STORY), self._storyteller.tell(rng, self._storyteller.cast_for(topic))
        return rng.choice(("Thanks!", "Thank you.", "thanks", "Great, thank you.")), rng.choice(
            ("You are welcome!", "Gladly!")
        )


def named(form: str, topic: Topic) -> str:
    text = form.replace("{xs}", topic.many).replace("{x}", topic.phrase)
    if topic.article not in ("a", "an"):
        for plural_form in ("What are ", "Why are ", "Where are "):
            text = text.replace(plural_form, plural_form.replace(" are", " is"))
        text = text.replace(f"do {topic.many}", f"does {topic.many}")
    return capital(text)


def ask(rng: random.Random, forms: Sequence[str], topic: Topic) -> str:
    """A request about ``topic`` in one of the ``forms``; general requests are often put together from parts."""
    if forms is prompts.ABOUT and rng.random() < 0.3:
        opening, verb, link, ending = (rng.choice(parts) for parts in prompts.PARTS_ABOUT)
        return named(f"{opening} {verb} {link} {rng.choice(('{x}', '{xs}'))}{ending}", topic)
    return named(rng.choice(forms), topic)


def composed_story(rng: random.Random, phrase: str) -> str:
    """A request for a story about ``phrase``, put together from parts."""
    opening, kind, ending = (rng.choice(parts) for parts in prompts.PARTS_STORY)
    return f"{opening} {kind} about {phrase}{ending}"
