"""GatewayLinks: the sockets around one gateway's `Dispatcher`, `StreamCopies` and listeners: the router shards, and
every replica that they tell of.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cluster.frames import FromReplica, FromRouter, ReplicaInfo, ReplicaUp, Stored, Taken
from cluster.streams.dispatcher import Dispatcher
from cluster.streams.link import ShardListener
from cluster.streams.stream_copies import StreamCopies
from cluster.streams.watchdog import TICK_S
from deployments.router_link import RouterLink, Shards
from deployments.transport import FrameConnection, connect

FIRST_RETRY_S, LONGEST_RETRY_S = 0.1, 2.0
logger = logging.getLogger("manta.gateway")


class _ReplicaPeer:
    """Feeds one replica's messages to the dispatcher."""

    def __init__(self, links: "GatewayLinks", replica_id: str) -> None:
        self._links, self._replica_id = links, replica_id

    def on_frame(self, frame: Any) -> None:
        self._links.dispatcher.on_replica_frame(self._replica_id, frame)

    def on_lost(self) -> None:
        self._links.replica_lost(self._replica_id)


class _ShardPeer:
    """Feeds one router shard's messages to those whom they concern (`deployments.router_link.RouterPeer`)."""

    def __init__(self, links: "GatewayLinks", shard: int) -> None:
        self._links, self._shard = links, shard

    def on_router(self, connection: FrameConnection) -> None:
        self._links.dispatcher.on_router(self._shard, connection)
        self._links.copies.on_router(self._shard, connection, connection.is_within_host)
        for listener in self._links.listeners:
            listener.on_router(self._shard, connection)

    def on_router_frame(self, frame: Any) -> None:
        self._links.dispatcher.on_router_frame(self._shard, frame)
        match frame:
            case ReplicaUp():
                self._links.dial(frame.replica)
            case Stored():
                self._links.copies.on_stored(self._shard, frame)
            case Taken():
                self._links.copies.on_taken(frame)
            case _:
                for listener in self._links.listeners:
                    listener.on_router_frame(self._shard, frame)

    def on_router_lost(self) -> None:
        self._links.dispatcher.on_router_lost(self._shard)
        self._links.copies.on_router_lost(self._shard)
        for listener in self._links.listeners:
            listener.on_router_lost(self._shard)


class GatewayLinks:
    """Feeds them what arrives and the ticks; keeps connected to all shards and announced replicas."""

    def __init__(
        self, dispatcher: Dispatcher, copies: StreamCopies, listeners: Sequence[ShardListener], shards: Shards
    ) -> None:
        self.dispatcher, self.copies, self.listeners, self._secret = dispatcher, copies, listeners, shards.secret
        hello = ("gateway", dispatcher.name)
        self._routers = [
            RouterLink(partial(shards.find, shard), FromRouter, hello, _ShardPeer(self, shard))
            for shard in range(shards.count)
        ]
        self._dialling: dict[str, asyncio.Task[None]] = {}
        self._ticker = asyncio.create_task(self._tick())
        self.on_tick: list[Callable[[float], None]] = []  #: who else is told of the time
        self.connections: dict[str, FrameConnection] = {}

    @property
    def has_failed(self) -> bool:
        """It ticks no longer: nobody looks after frozen replicas and silent shards."""
        return self._ticker.done()

    def dial(self, replica: ReplicaInfo) -> None:
        """Connect to this replica, unless that is done or being done."""
        replica_id = replica.replica_id
        if replica_id not in self.connections and replica_id not in self._dialling:
            self._dialling[replica_id] = asyncio.create_task(self._dial(replica))

    def replica_lost(self, replica_id: str) -> None:
        """Tell it, and try again while a shard announces the replica."""
        if self.connections.pop(replica_id, None) is None:
            return
        self.dispatcher.on_replica_lost(replica_id)
        replica = self.dispatcher.replicas.get(replica_id)
        if replica is not None:
            self.dial(replica)

    async def _dial(self, replica: ReplicaInfo) -> None:
        replica_id, retry_s = replica.replica_id, FIRST_RETRY_S
        try:
            while not await self._connect(replica):
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, LONGEST_RETRY_S)
                if replica_id not in self.dispatcher.replicas:
                    return
        finally:
            self._dialling.pop(replica_id, None)

    async def _connect(self, replica: ReplicaInfo) -> bool:
        peer = _ReplicaPeer(self, replica.replica_id)
        hello = ("gateway", self.dispatcher.name)
        try:
            where = (replica.host, replica.port)
            connection = await connect(where, FromReplica, self._secret, hello, peer)
        except (OSError, TimeoutError) as error:
            logger.warning("replica %s is not reachable: %s", replica.replica_id, error)
            return False
        if not connection.is_open:
            return False
        self.connections[replica.replica_id] = connection
        self.dispatcher.on_replica(replica.replica_id, connection)
        return True

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_S)
            self.dispatcher.on_tick(loop.time())
            self.copies.on_live_shards(self.dispatcher.live_shards)
            for tell in (*(listener.on_tick for listener in self.listeners), *self.on_tick):
                tell(loop.time())

    def close(self) -> None:
        for router in self._routers:
            router.close()
        self._ticker.cancel()
        for task in self._dialling.values():
            task.cancel()
        connections, self.connections = self.connections, {}
        for connection in connections.values():
            connection.close()
