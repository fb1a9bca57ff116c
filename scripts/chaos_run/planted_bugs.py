"""Bugs planted between server and journal, which the oracle must catch: else its silence would prove nothing."""

from collections.abc import Callable, Iterator

import msgspec

from scripts.chaos_run.journal import ChoiceChunk, Chunk, Event
from scripts.chaos_run.stream_client import Receive


class _AtToken:
    """Acts on one event with tokens, the `number`-th; the others pass."""

    def __init__(self, number: int) -> None:
        self._number, self._seen = number, 0

    def __call__(self, event: Event) -> list[Event]:
        if not _new_tokens(event):
            return self.otherwise(event)
        self._seen += 1
        return self.act(event) if self._seen == self._number else self.otherwise(event)

    def act(self, event: Event) -> list[Event]:
        raise NotImplementedError

    def otherwise(self, event: Event) -> list[Event]:
        return [event]


class Drop(_AtToken):
    """The event does not arrive."""

    def act(self, event: Event) -> list[Event]:
        return []


class Duplicate(_AtToken):
    """The event arrives twice."""

    def act(self, event: Event) -> list[Event]:
        return [event, event]


class Change(_AtToken):
    """A token is another one."""

    def act(self, event: Event) -> list[Event]:
        said = msgspec.json.decode(event.data)
        said["choices"][0]["token_ids"][-1] ^= 1
        return [Event(event.id, msgspec.json.encode(said))]


class Swap(_AtToken):
    """Two events change places."""

    _held: Event | None = None

    def act(self, event: Event) -> list[Event]:
        self._held = event
        return []

    def otherwise(self, event: Event) -> list[Event]:
        held, self._held = self._held, None
        return [event] if held is None else [event, held]


class Renumbered:
    """Wraps a bug so that the event ids look right: only the tokens can betray it."""

    def __init__(self, bug: Receive) -> None:
        self._bug, self._next = bug, 0

    def __call__(self, event: Event) -> list[Event]:
        return [self._renumber(passed) for passed in self._bug(event)]

    def _renumber(self, event: Event) -> Event:
        if not event.id:
            return event
        self._next += len(_new_tokens(event))
        return Event(f"{event.id.rpartition(':')[0]}:{self._next - 1}", event.data)


def truncated(event: Event) -> list[Event]:
    """The end comes, without the last tokens and with the right usage: the worst a server can do."""
    return [] if any(choice.finish_reason for choice in _choices(event)) else [event]


def _choices(event: Event) -> list[ChoiceChunk]:
    return [] if event.data == b"[DONE]" else msgspec.json.decode(event.data, type=Chunk).choices


def _new_tokens(event: Event) -> list[int]:
    """Of a stream with one choice."""
    return [token for choice in _choices(event) for token in choice.token_ids or ()]


def planted_bugs(number: int = 7) -> Iterator[tuple[str, Receive]]:
    """All of them, each at the `number`-th token event of a stream with one choice."""
    kinds: dict[str, Callable[[int], Receive]] = {
        "dropped": Drop, "duplicated": Duplicate, "changed": Change, "swapped": Swap,
    }  # fmt: skip
    for name, kind in kinds.items():
        yield f"one token {name}", kind(number)
        yield f"one token {name}, ids renumbered", Renumbered(kind(number))
    yield "the end cut off", truncated
