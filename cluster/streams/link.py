"""Link: the sending half of a connection, as those see it who decide what to say on it."""

from typing import Protocol

from cluster.frames import Frame, FromRouter


class Link(Protocol):
    """What is sent on a closed link is dropped (the loss is told otherwise)."""

    @property
    def is_open(self) -> bool: ...

    def send(self, frame: Frame) -> None: ...

    def close(self) -> None: ...


class ShardListener(Protocol):
    """Whoever at a gateway speaks with the router shards beside the dispatcher."""

    def on_router(self, shard: int, link: Link) -> None:
        """The shard is there (again)."""

    def on_router_frame(self, shard: int, frame: FromRouter) -> None:
        """It has said something; it may be for somebody else."""

    def on_router_lost(self, shard: int) -> None:
        """It answers nothing any more."""

    def on_tick(self, now: float) -> None:
        """A fraction of a second has passed."""
