"""Finds stop strings in text that arrives in pieces, and holds back what may yet become one."""

from collections.abc import Sequence


class StopStrings:
    """Watches one output. Text given out never holds a part of a stop string that ends the output.

    `found` is the stop string that ended it, once there was one. Of several the one that is complete first
    counts, of those that end together the longest; so it does not matter in which pieces the text comes.
    """

    __slots__ = ("_held", "_stops", "found")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """The part of the text so far that is safe to give out now."""
        if not self._stops:
            return text
        if not text:
            return ""
        text = self._held + text
        at, self.found = self._first_match(text)
        if self.found is not None:
            self._held = ""
            return text[:at]
        safe = len(text) - self._num_held(text)
        self._held = text[safe:]
        return text[:safe]

    def pass_by(self, text: str) -> str:
        """Give out text that is not to be watched (before `min_tokens`)."""
        held, self._held = self._held, ""
        return held + text

    def flush(self) -> str:
        """What was held back, when the output has ended otherwise."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str | None]:
        best: tuple[int, int, str | None] = (len(text) + 1, len(text), None)
        for stop in self._stops:
            at = text.find(stop)
            if at != -1:
                best = min(best, (at + len(stop), at, stop), key=lambda match: match[:2])
        return best[1:]

    def _num_held(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        held = 0
        for stop in self._stops:
            at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while at != -1 and not stop.startswith(text[at:]):
                at = text.find(stop[0], at + 1)
            if at != -1:
                held = max(held, len(text) - at)
        return held
