"""Link: the sending half of a connection, as those see it who decide what to say on it."""

from typing import Protocol

from cluster.frames import Frame


class Link(Protocol):
    """What is sent on a closed link is dropped (the loss is told otherwise)."""

    @property
    def is_open(self) -> bool: ...

    def send(self, frame: Frame) -> None: ...

    def close(self) -> None: ...
