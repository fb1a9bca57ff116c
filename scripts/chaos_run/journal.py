"""What one client has read, in the order in which it came: the history that the oracle judges."""

from array import array
from dataclasses import dataclass, field
from typing import Any

import msgspec

from scripts.chaos_run.workload import Ask


class Logprobs(msgspec.Struct):
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []


class ChoiceChunk(msgspec.Struct):
    """The part of an event that tells of one choice."""

    index: int
    text: str = ""
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class Chunk(msgspec.Struct):
    """The JSON of an event, or of an answer that is not streamed."""

    choices: list[ChoiceChunk] = []
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


@dataclass(slots=True)
class Event:
    """One server-sent event; `id` is empty where it had none."""

    id: str
    data: bytes


@dataclass(slots=True)
class ChoiceJournal:
    """One choice as it was read. `tokens_at`: when each event with tokens came, the request's start first."""

    tokens_at: "array[float]"
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reasons: list[str] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)  #: between the two best, where they were asked for

    def read(self, chunk: ChoiceChunk, now: float) -> None:
        self.text += chunk.text
        if chunk.token_ids:
            self.token_ids += chunk.token_ids
            self.tokens_at.append(now)
        if chunk.finish_reason is not None:
            self.finish_reasons.append(chunk.finish_reason)
        if chunk.logprobs is not None:
            self.logprobs += chunk.logprobs.token_logprobs
            self.margins += [_margin(top) for top in chunk.logprobs.top_logprobs]


@dataclass(slots=True)
class Journal:
    """One request from the client's side. Times are of the client's monotonic clock, in seconds."""

    ask: Ask
    started_at: float
    choices: list[ChoiceJournal]
    ended_at: float = 0.0
    stream_id: str = ""
    cursor: str = ""  #: the last event id
    num_done: int = 0  #: `[DONE]` events, or whole answers
    usages: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  #: error events, refusals, breaks that could not be mended
    wrong_ids: list[str] = field(default_factory=list)  #: event ids that do not fit what has been read
    num_resumed: int = 0
    num_sent: int = 0  #: more than once where the connection broke before anything had been read

    @classmethod
    def begin(cls, ask: Ask, now: float) -> "Journal":
        return cls(ask, now, [ChoiceJournal(array("d", [now])) for _ in range(ask.n)])

    @property
    def is_over(self) -> bool:
        return bool(self.num_done or self.errors)

    def read(self, event: Event, now: float) -> None:
        """Take the next event of the stream."""
        if event.data == b"[DONE]":
            self.num_done += 1
            return
        self.read_chunk(msgspec.json.decode(event.data, type=Chunk), now)
        if event.id:
            self._check_id(event.id)

    def read_chunk(self, chunk: Chunk, now: float) -> None:
        if chunk.error is not None:
            self.errors.append(f"error event: {chunk.error}")
        if chunk.usage is not None:
            self.usages.append(chunk.usage)
        for part in chunk.choices:
            self.choices[part.index].read(part, now)

    def _check_id(self, event_id: str) -> None:
        """`<stream>:<index>`, or with several choices `<stream>:<index>,<index>,...`: the last token of each so far.

        A choice that has not begun has nothing there, one whose end was told without a token one more than its last;
        after the usage stands `end`.
        """
        self.stream_id, _, cursor = event_id.rpartition(":")
        self.cursor = event_id
        if cursor == "end":
            return
        said = [int(index or "-1") for index in cursor.split(",")]
        read = [len(choice.token_ids) - 1 for choice in self.choices]
        over = [bool(choice.finish_reasons) for choice in self.choices]
        right = len(said) == len(read) and all(
            index in (last, last + ended) for index, last, ended in zip(said, read, over, strict=True)
        )
        if not right and not self.wrong_ids:
            self.wrong_ids.append(f"event id {event_id} came when {read} had been read")

    def record(self) -> dict[str, Any]:
        """For the history file."""
        return {
            "request": self.ask.name, "stream": self.stream_id, "start": self.started_at, "end": self.ended_at,
            "n": self.ask.n, "max_tokens": self.ask.max_tokens, "prompt_tokens": len(self.ask.prompt),
            "options": self.ask.options, "done": self.num_done, "errors": self.errors, "resumed": self.num_resumed,
            "sent": self.num_sent, "usage": self.usages,
            "choices": [
                {"token_ids": choice.token_ids, "at": [round(t - self.started_at, 4) for t in choice.tokens_at]}
                for choice in self.choices
            ],
        }  # fmt: skip


def _margin(top: dict[str, float] | None) -> float:
    """How far the best token is from the second; infinite where only one is told."""
    best = sorted((top or {}).values(), reverse=True)
    return best[0] - best[1] if len(best) > 1 else float("inf")
