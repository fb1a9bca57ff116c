"""GatewayLinks: the sockets around one gateway's `Dispatcher`: its router, and every replica the router tells of."""

import asyncio
import logging
from typing import Any

from cluster.dispatcher import Dispatcher
from cluster.frames import FromReplica, ReplicaInfo, ReplicaUp
from deployments.transport import FrameConnection, connect

logger = logging.getLogger("manta.gateway")


class _ReplicaPeer:
    """Feeds one replica's messages to the dispatcher."""

    def __init__(self, dispatcher: Dispatcher, replica_id: str) -> None:
        self._dispatcher, self._replica_id = dispatcher, replica_id

    def on_frame(self, frame: Any) -> None:
        self._dispatcher.on_replica_frame(frame)

    def on_lost(self) -> None:
        self._dispatcher.on_replica_lost(self._replica_id)


class GatewayLinks:
    """Feeds the dispatcher what arrives, and dials the replicas it does not know yet."""

    def __init__(self, dispatcher: Dispatcher, secret: bytes) -> None:
        self._dispatcher, self._secret = dispatcher, secret
        self._dialling: set[asyncio.Task[None]] = set()
        self.connections: dict[str, FrameConnection] = {}

    def on_router(self, connection: FrameConnection) -> None:
        self._dispatcher.on_router(connection)

    def on_router_lost(self) -> None:
        self._dispatcher.on_router_lost()

    def on_router_frame(self, frame: Any) -> None:
        self._dispatcher.on_router_frame(frame)
        if isinstance(frame, ReplicaUp):
            known = self.connections.get(frame.replica.replica_id)
            if known is None or not known.is_open:
                task = asyncio.create_task(self._dial(frame.replica))
                self._dialling.add(task)
                task.add_done_callback(self._dialling.discard)

    async def _dial(self, replica: ReplicaInfo) -> None:
        peer = _ReplicaPeer(self._dispatcher, replica.replica_id)
        hello = ("gateway", self._dispatcher.name)
        try:
            where = (replica.host, replica.port)
            connection = await connect(where, FromReplica, self._secret, hello, peer)
        except (OSError, TimeoutError) as error:
            logger.warning("replica %s is not reachable: %s", replica.replica_id, error)
            return
        self.connections[replica.replica_id] = connection
        self._dispatcher.on_replica(replica.replica_id, connection)

    def close(self) -> None:
        for task in self._dialling:
            task.cancel()
        for connection in self.connections.values():
            connection.close()
