"""ReplicaLinks: one replica's connections to all router shards, through one of which it is announced."""

from collections.abc import Callable
from functools import partial
from typing import Any

from cluster.frames import Drain, FromRouter, Pulse
from cluster.replica.home_shard import HomeShard
from deployments.replica_server import ReplicaServer
from deployments.router_link import RouterLink, Shards
from deployments.transport import FrameConnection


class _ShardPeer:
    def __init__(self, links: "ReplicaLinks", shard: int) -> None:
        self._links, self._shard = links, shard

    def on_router(self, connection: FrameConnection) -> None:
        self._links.on_router(self._shard, connection)

    def on_router_frame(self, frame: Any) -> None:
        self._links.on_router_frame(self._shard, frame)

    def on_router_lost(self) -> None:
        self._links.on_router_lost(self._shard)


class ReplicaLinks:
    """Prefers shard `home`; `on_drain` is called when a shard asks the replica to leave."""

    def __init__(
        self, name: str, server: ReplicaServer, shards: Shards, home: int, on_drain: Callable[[], None]
    ) -> None:
        self._server, self._on_drain = server, on_drain
        self._choice = HomeShard(shards.count, home)
        self._connections: dict[int, FrameConnection] = {}
        self._announced_at: int | None = None
        self._links = [
            RouterLink(partial(shards.find, shard), FromRouter, ("replica", name), _ShardPeer(self, shard))
            for shard in range(shards.count)
        ]

    def on_router(self, shard: int, connection: FrameConnection) -> None:
        self._connections[shard] = connection
        self._choice.on_link(shard)
        self._settle()

    def on_router_frame(self, shard: int, frame: Any) -> None:
        match frame:
            case Pulse():
                self._choice.on_pulse(shard)
            case Drain():
                self._on_drain()

    def on_router_lost(self, shard: int) -> None:
        del self._connections[shard]
        self._choice.on_lost(shard)
        if self._announced_at == shard:
            self._announced_at = None
            self._server.on_router_lost()
        self._settle()

    def _settle(self) -> None:
        """Be announced where the choice says. The shard that is left sees the connection end: nobody counts twice."""
        chosen = self._choice.choose()
        if chosen == self._announced_at or chosen is None:
            return
        left, self._announced_at = self._announced_at, chosen
        self._server.on_router(self._connections[chosen])
        if left is not None:
            self._links[left].drop()

    def tick(self) -> None:
        """Look whether the home shard is still live. Call ten times a second."""
        self._choice.on_tick()
        self._settle()

    def close(self) -> None:
        for link in self._links:
            link.close()
