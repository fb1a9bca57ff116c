"""ShardLinks: a gateway's connections to the router shards, and which of them are alive.

A shard is alive while its connection is open and it is not silent. It is watched from its first `Pulse` on.
"""

from collections.abc import Collection

from cluster.frames import Frame, FromRouter, Pulse
from cluster.streams.link import Link
from cluster.streams.shard_choice import ShardChooser
from cluster.streams.watchdog import SILENCE_S, LivedTime


class ShardLinks:
    """Knows shards by number."""

    def __init__(self, time: LivedTime) -> None:
        self._time = time
        self._chooser = ShardChooser()
        self._links: dict[int, Link] = {}
        self._heard_at: dict[int, float] = {}  #: of the shards that pulse
        self._silent: set[int] = set()

    def connect(self, shard: int, link: Link) -> None:
        self._links[shard] = link
        self._heard_at.pop(shard, None)
        self._silent.discard(shard)

    def disconnect(self, shard: int) -> None:
        for known in (self._links, self._heard_at):
            known.pop(shard, None)
        self._silent.discard(shard)

    def choose(self, key: bytes, homes: Collection[int]) -> int | None:
        """The shard for requests of this key, one with replicas (`homes`) if there is; None while no shard is alive."""
        alive = self.alive()
        return self._chooser.choose(key, [shard for shard in alive if shard in homes] or alive)

    def alive(self) -> set[int]:
        return self._links.keys() - self._silent

    def is_alive(self, shard: int) -> bool:
        return shard in self._links and shard not in self._silent

    def send(self, shard: int | None, frame: Frame) -> None:
        """To a shard that is connected, even if it is silent: it may wake."""
        link = self._links.get(shard) if shard is not None else None
        if link is not None:
            link.send(frame)

    def send_all(self, frame: Frame) -> None:
        for link in self._links.values():
            link.send(frame)

    def heard(self, shard: int, frame: FromRouter) -> bool:
        """A frame has come; returns whether the shard is back from silence."""
        if isinstance(frame, Pulse) or shard in self._heard_at:
            self._heard_at[shard] = self._time.now
        if shard not in self._silent:
            return False
        self._silent.discard(shard)
        return True

    def newly_silent(self) -> list[int]:
        """Shards that count as lost from now on, until they speak."""
        late = self._time.now - SILENCE_S
        silent = [shard for shard, heard_at in self._heard_at.items() if heard_at < late and shard not in self._silent]
        self._silent.update(silent)
        return silent
