"""Conversations: what a user asks and what the demo model should answer, turn by turn."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scripts.demo_model import articles, prompts
from scripts.demo_model.stories import Cast, Storyteller, request_nouns
from scripts.demo_model.tables import Tables, Topic, plural
from scripts.demo_model.topic_turns import NUMBERS, TopicTurns, Turns, ask, composed_story
from scripts.demo_model.wording import as_typed, capital, invented_word, listing, with_article

MODEL_NAME = "Manta's demo model"
LONG = 420  # characters; a story of this length cannot be cut to one sentence
FIRST_CONTACT = 8  # the first blocks of the small talk: greetings and what everybody asks a model first
_GROUPS = {
    "animals": "fox wolf bear horse lion tiger elephant giraffe camel deer rabbit hedgehog squirrel",
    "wild animals": "fox wolf bear lion tiger elephant deer",
    "farm animals": "cow sheep goat pig horse duck",
    "birds": "owl eagle robin swan duck penguin parrot crow",
    "sea animals": "whale dolphin shark octopus crab turtle",
    "insects": "bee butterfly ant beetle dragonfly",
    "fruits": "apple banana orange lemon strawberry grape pear",
    "vegetables": "potato carrot tomato onion pumpkin cucumber",
    "drinks": "water milk tea coffee juice lemonade",
    "musical instruments": "guitar piano violin drum flute trumpet",
    "tools": "hammer knife saw pencil compass",
    "vehicles": "car train bus ship bicycle boat rocket",
    "colours": "red blue green yellow orange violet white black",
    "planets": "Mercury Venus Mars Jupiter Saturn Uranus Neptune",
    "countries": "France Italy Japan India Egypt Iceland Brazil",
    "cities": "Paris London Rome Tokyo Berlin Madrid Vienna",
    "sports": "football swimming running tennis skiing",
    "jobs": "teacher doctor farmer baker sailor scientist",
    "metals": "gold iron silver copper",
    "things in a house": "chair table bed lamp mirror window door",
    "trees": "oak beech birch maple pine",
    "flowers": "rose sunflower tulip daisy lily",
    "pets": "dog cat rabbit hamster parrot",
    "feelings": "love happiness fear hope courage",
    "continents": "Africa Asia Europe Australia Antarctica",
}
_UNCOUNTED = ("drinks", "colours", "planets", "countries", "cities", "sports", "metals", "feelings", "continents")
_GROUP_PROMPTS = (
    "Name {n} {group}.",
    "List {n} {group}.",
    "Tell me {n} {group}.",
    "Give me {n} examples of {group}.",
    "{n} {group}",
    "Can you name {n} {group}?",
    "Name some {group}.",
    "Which {group} do you know?",
)


@dataclass
class Dialogue:
    """A conversation: user and assistant alternate; ``system`` may be empty."""

    system: str = ""
    turns: Turns = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        parts = [{"role": "system", "content": self.system}] if self.system else []
        for user, assistant in self.turns:
            parts += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        return parts


class DialogueWriter:
    """Writes dialogues from the tables; every draw comes from the ``rng`` that the caller passes in."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._storyteller = Storyteller(tables)
        topic_turns = TopicTurns(tables, self._storyteller)
        self._indefinite = {topic.definite: topic.phrase for topic in tables.topics}
        self._tasks: list[tuple[float, Callable[[random.Random], Turns]]] = [
            (28, topic_turns.about),
            (10, topic_turns.what),
            (6, topic_turns.one_aspect),
            (4, topic_turns.likes),
            (5, topic_turns.facts),
            (3, topic_turns.compare),
            (17, self._story),
            (1.5, self._any_story),
            (3, topic_turns.poem),
            (1.5, topic_turns.letter),
            (12, self._tips),
            (22, self._question),
            (24, self._small_talk),
            (7, self._capital),
            (5, self._names),
            (3, self._group),
            (2, self._sum),
            (6, self._unknown),
            (1, self._unknown_how),
            (1.5, self._babble),
        ]

    def write(self, rng: random.Random) -> Dialogue:
        """One dialogue of one to four turns, with or without a system prompt."""
        weights = [weight for weight, _ in self._tasks]
        task = rng.choices([task for _, task in self._tasks], weights)[0]
        turns = task(rng)
        while rng.random() < 0.12 and len(turns) < 4:
            turns += rng.choices([task for _, task in self._tasks], weights)[0](rng)
        dialogue = Dialogue(turns=[(as_typed(rng, user), answer) for user, answer in turns])
        if rng.random() < 0.3:
            self._set_style(rng, dialogue)
        return dialogue

    def _set_style(self, rng: random.Random, dialogue: Dialogue) -> None:
        style, system = rng.choice(self._tables.system_prompts)
        if style == "short" and any(len(answer) > LONG for _, answer in dialogue.turns):
            style, system = self._tables.system_prompts[0]
        name = self._storyteller.draw_name(rng)
        dialogue.system = system.format(name=name)
        if style == "named":
            dialogue.turns = [(user, answer.replace(MODEL_NAME, name)) for user, answer in dialogue.turns]
            if rng.random() < 0.5:
                ask = rng.choice(("Who are you?", "What is your name?", "Hello, who are you?", "Introduce yourself."))
                answer = rng.choice(
                    (f"I am {name}. How can I help you?", f"My name is {name}. What would you like to know?")
                )
                dialogue.turns.insert(0, (as_typed(rng, ask), answer))
        elif style == "short":
            dialogue.turns = [(user, _first_sentence(answer)) for user, answer in dialogue.turns]
        elif style == "cheerful":
            opening = rng.choice(("What a lovely question! ", "With pleasure! ", "Oh, how nice! ", "Great! "))
            dialogue.turns = [(user, opening + answer) for user, answer in dialogue.turns]
        elif style == "polite":
            opening = rng.choice(("Certainly. ", "Gladly. ", "Of course. ", "With pleasure. "))
            dialogue.turns = [(user, opening + answer) for user, answer in dialogue.turns]

    def _story(self, rng: random.Random) -> Turns:
        cast = self._storyteller.draw_cast(rng)
        if rng.random() < 0.3:
            cast = self._storyteller.cast_for(rng.choice(self._tables.topics))
        nouns = [self._indefinite.get(noun, noun) if rng.random() < 0.5 else noun for noun in cast.asked_for()]
        if rng.random() < 0.15 and not cast.place:
            rng.shuffle(nouns)
        asked: Sequence[str] = prompts.STORY
        length = 0
        if rng.random() < 0.12:
            asked, length = prompts.SHORT_STORY, 3
        place = nouns.pop() if cast.place and len(nouns) > 1 and rng.random() < 0.6 else ""
        phrase = request_nouns(rng, nouns) + (f" {rng.choice(('in', 'at', 'near'))} {place}" if place else "")
        user = rng.choice(asked).format(x=phrase)
        if not length and rng.random() < 0.25:
            user = composed_story(rng, phrase)
        story = self._storyteller.tell(rng, cast, length=length)
        turns = [(user, story)]
        if rng.random() < 0.08:
            turns.append((rng.choice(prompts.ANOTHER), self._storyteller.tell(rng, cast)))
        return turns

    def _any_story(self, rng: random.Random) -> Turns:
        return [(rng.choice(prompts.ANY_STORY), self._storyteller.tell(rng, self._storyteller.draw_cast(rng)))]

    def _tips(self, rng: random.Random) -> Turns:
        how_to = rng.choice(self._tables.how_tos)
        count = rng.choice((2, 3, 3, 3, 4, 5))
        number = rng.choice((NUMBERS[count], NUMBERS[count], str(count)))
        asked = rng.choice(prompts.TIPS)
        if "{n}" not in asked:
            count = 3
        order = sorted(rng.sample(range(len(how_to.tips)), min(count, len(how_to.tips))))
        tips = [how_to.tips[place] for place in order]
        user = capital(asked.format(n=number, goal=how_to.goal, gerund=how_to.gerund))
        if "{n}" not in asked and rng.random() < 0.4:
            linked = [tip[0].lower() + tip[1:] for tip in tips]
            return [(user, f"To {how_to.goal}, {linked[0]}. Then {linked[1]}. Finally, {linked[2]}.")]
        opening = rng.choice(
            (
                f"Here are {NUMBERS[len(tips)]} tips for {how_to.gerund}:\n",
                f"Here are some tips for {how_to.gerund}:\n",
                "",
            )
        )
        return [(user, opening + "\n".join(f"{place}. {tip}." for place, tip in enumerate(tips, 1)))]

    def _question(self, rng: random.Random) -> Turns:
        known = rng.choice(self._tables.questions)
        return [(_as_question(rng.choice(known.questions)), rng.choice(known.answers))]

    def _small_talk(self, rng: random.Random) -> Turns:
        pool = self._tables.small_talk
        known = rng.choice(pool[:FIRST_CONTACT] if rng.random() < 0.35 else pool)
        question = rng.choice(known.questions)
        words = ("who", "what", "how", "where", "can", "do", "are", "which", "will")
        user = (
            _as_question(question)
            if question.split()[0].strip(",") in words
            else capital(question).replace("i'm", "I'm")
        )
        return [(_with_capital_i(user), rng.choice(known.answers).format(name=MODEL_NAME))]

    def _capital(self, rng: random.Random) -> Turns:
        land, town = rng.choice(self._tables.capitals)
        if rng.random() < 0.25:
            asked = rng.choice(("Where is {x}?", "In which country is {x}?", "What is {x} the capital of?")).format(
                x=town
            )
            return [(asked, f"{town} is the capital of {land}.")]
        answer = rng.choice((f"The capital of {land} is {town}.", f"{town} is the capital of {land}."))
        return [(rng.choice(prompts.CAPITAL).format(x=land), answer)]

    def _names(self, rng: random.Random) -> Turns:
        name = self._storyteller.draw_name(rng)
        asked = rng.choice(prompts.MEET)
        answer = rng.choice(
            (
                f"Nice to meet you, {name}! What would you like to talk about?",
                f"Hello, {name}! How can I help you?",
                f"Hello {name}! I am {MODEL_NAME}.",
            )
        )
        if "Who are you" in asked:
            answer = f"Nice to meet you, {name}! I am {MODEL_NAME}, a very small language model."
        turns = [(asked.format(name=name), answer)]
        if rng.random() < 0.35:
            topic = rng.choice(self._tables.topics)
            turns.append((ask(rng, prompts.WHAT, topic), articles.short_answer(rng, topic)))
        if rng.random() < 0.75:
            turns.append((rng.choice(prompts.ASK_NAME), rng.choice((f"Your name is {name}.", f"You are {name}."))))
        return turns

    def _group(self, rng: random.Random) -> Turns:
        group = rng.choice(sorted(_GROUPS))
        count = rng.choice((2, 3, 3, 4))
        asked = rng.choice(_GROUP_PROMPTS)
        members = rng.sample(_GROUPS[group].split(), count if "{n}" in asked else 3)
        if group not in _UNCOUNTED:
            members = [plural(member) for member in members]
        answer = rng.choice(
            (f"{NUMBERS[len(members)].capitalize()} {group} are {listing(members)}.", f"{capital(listing(members))}.")
        )
        return [(capital(asked.format(n=rng.choice((NUMBERS[count], str(count))), group=group)), answer)]

    def _sum(self, rng: random.Random) -> Turns:
        left, right = rng.randrange(0, 11), rng.randrange(0, 11)
        forms = ("What is {a} plus {b}?", "How much is {a} plus {b}?", "{a} + {b}", "What is {a} + {b}?", "{a}+{b}=")
        answer = rng.choice((f"{left} plus {right} is {left + right}.", f"The answer is {left + right}."))
        return [(rng.choice(forms).format(a=left, b=right), answer)]

    def _unknown(self, rng: random.Random) -> Turns:
        if rng.random() < 0.25:
            return self._unknown_person(rng)
        noun = rng.choice(self._tables.nouns) if rng.random() < 0.7 else invented_word(rng)
        known = rng.choice(self._tables.topics)
        shape = Topic(noun, with_article(noun).split(" ")[0], "", "", (), "", "", "")
        asked = ask(rng, rng.choice((prompts.ABOUT, prompts.WHAT, prompts.WHERE, prompts.DOES)), shape)
        many = plural(noun)
        answer = rng.choice(
            (
                f"I am sorry, I have not learned much about {many}, because I am a very small model.",
                f"I do not know enough about {many} to explain them well.",
                f"My training told me very little about {many}, so I would only be guessing.",
            )
        ) + rng.choice(
            (
                f" I could write a short story about {with_article(noun)} instead. Would you like that?",
                f" Shall I write a story about {with_article(noun)}?",
                f" But I can tell you about {known.many}, for example.",
                f" A good book or a library can tell you more about {many}.",
            )
        )
        turns = [(asked, answer)]
        if "Would you" in answer or "Shall I" in answer:
            if rng.random() < 0.5:
                turns.append((rng.choice(prompts.YES), self._storyteller.tell(rng, Cast(thing=noun))))
        elif known.many in answer and rng.random() < 0.3:
            turns.append((rng.choice(prompts.YES), articles.paragraph(rng, known)))
        return turns

    def _unknown_person(self, rng: random.Random) -> Turns:
        name = " ".join(self._storyteller.draw_name(rng) for _ in range(rng.choice((1, 2))))
        asked = rng.choice(
            ("Who is {x}?", "Tell me about {x}.", "Do you know {x}?", "Who was {x}?", "What do you know about {x}?")
        )
        answer = rng.choice(
            (
                f"I am sorry, I do not know who {name} is.",
                f"I have not learned anything about {name}.",
                f"The name {name} tells me nothing, because I am a very small model.",
            )
        )
        answer += rng.choice(
            (f" I could write a short story about {name}, if you like.", " Perhaps you can tell me more?")
        )
        turns = [(asked.format(x=name), answer)]
        if "story" in answer and rng.random() < 0.5:
            turns.append((rng.choice(prompts.YES), self._storyteller.tell(rng, Cast(name=name))))
        return turns

    def _unknown_how(self, rng: random.Random) -> Turns:
        noun = rng.choice(self._tables.nouns)
        x = with_article(noun)
        answer = rng.choice(
            (
                f"I have no special knowledge about {plural(noun)}, but it helps to begin slowly. "
                f"Look closely at {x} first, find the right tools and ask someone who has done it before.",
                f"I am too small a model to give good advice about {plural(noun)}. "
                f"A book or a person with experience can help you.",
            )
        )
        return [(rng.choice(prompts.UNKNOWN_HOW).format(x=x), answer)]

    def _babble(self, rng: random.Random) -> Turns:
        babble = " ".join(invented_word(rng) for _ in range(rng.choice((1, 2, 3, 5))))
        if rng.random() < 0.4:
            babble = " ".join("".join(rng.choices("asdfghjklqwertyuiop", k=rng.randint(3, 6))) for _ in range(2))
        answer = rng.choice(
            (
                "I am sorry, I did not understand that. Could you say it in other words?",
                "I do not understand that. Please ask me about an animal, a place or a thing.",
            )
        )
        return [(babble, answer)]


def _as_question(text: str) -> str:
    words = (
        "who",
        "what",
        "why",
        "how",
        "where",
        "when",
        "which",
        "is",
        "are",
        "do",
        "does",
        "can",
        "at",
        "will",
        "hello",
        "hi",
    )
    mark = "?" if text.split()[0].strip(",") in words else "."
    return capital(text) + ("" if text[-1] in "?!." else mark)


def _with_capital_i(text: str) -> str:
    return " ".join("I" if word == "i" else word for word in text.split(" "))


def _first_sentence(text: str) -> str:
    lines = text.split("\n")
    line = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    line = line.removeprefix("1. ")
    end = line.find(". ")
    return line if end < 0 else line[: end + 1]
