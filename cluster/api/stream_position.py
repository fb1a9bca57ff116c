"""Where in a stream a client stands: the ids of events, and what a `Last-Event-ID` says.

An id is `<stream>:<index>`, the index of the last token that the client has; with several choices one index each,
`<stream>:<i0>,<i1>,...`. In place of an index, -1 says that a choice has begun but given no token, and nothing at all
that it has not begun. An end that comes without a token counts like one. `<stream>:end` is the id of the usage.
"""

import re
from collections.abc import Sequence

from cluster.api.request_body import shown
from cluster.errors import InvalidRequest

OPENED, NOTHING = -1, -2  #: in place of an index
_END = "end"
_INDICES = re.compile(r"(?:(?:-1|[0-9]{1,9})?,)*(?:-1|[0-9]{1,9})?")
HEADER = "Last-Event-ID"


class Position:
    """`have` is the index of the last token of each choice (or OPENED, NOTHING); `at_end`: there is nothing more."""

    def __init__(self, have: list[int], at_end: bool = False) -> None:
        self.have, self.at_end = have, at_end

    @classmethod
    def read(cls, last_event_id: str | None, stream: str, max_tokens: Sequence[int]) -> "Position":
        """What the header says of a stream whose choices have at most so many tokens each; without one: nothing yet."""
        if last_event_id is None:
            return cls([NOTHING] * len(max_tokens))
        check_event_id(last_event_id, stream)
        said = last_event_id.removeprefix(f"{stream}:")
        if said == _END:
            return cls(list(max_tokens), at_end=True)
        have = [int(part) if part else NOTHING for part in said.split(",")]
        if len(have) != len(max_tokens) or any(index > most for index, most in zip(have, max_tokens, strict=True)):
            raise _malformed(last_event_id, f"this stream has {len(max_tokens)} choices and no such token")
        return cls(have)


def check_event_id(last_event_id: str, stream: str) -> None:
    """Refuse what can be no id of an event of this stream."""
    name, _, said = last_event_id.rpartition(":")
    if name != stream or not (said == _END or _INDICES.fullmatch(said)):
        raise _malformed(last_event_id, "give the `id` of an event of this stream as it came")


class EventIds:
    """Makes the ids of one stream's events."""

    def __init__(self, stream: str, have: Sequence[int]) -> None:
        self._name = f"{stream}:".encode()
        self._parts = [b"" if index == NOTHING else b"%d" % index for index in have]

    def at(self, choice: int, index: int) -> bytes:
        """The client now has this choice up to `index`."""
        self._parts[choice] = b"%d" % index
        return self._name + b",".join(self._parts)

    def end(self) -> bytes:
        """The client has everything."""
        return self._name + _END.encode()


def _malformed(last_event_id: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"`{HEADER}` is {shown(last_event_id)}: {why}.", HEADER)
