"""RouterShard: the sockets and the clock around one `cluster.router.Router`, in any event loop."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from cluster.config import RouterConfig
from cluster.frames import (
    Announce,
    Enqueue,
    Fetch,
    Hello,
    Journal,
    Keep,
    Release,
    ReplicaInfo,
    Report,
    ToRouter,
    Withdraw,
)
from cluster.journal_store import JournalStore
from cluster.router import Outbox, Router
from cluster.routing.policy import policy_of
from deployments.transport import FrameConnection, FrameHandler, FrameServer

TICK_S = 0.1


@dataclass(frozen=True, slots=True)
class RouterAddress:
    """How to reach a router shard, and with which secret."""

    host: str
    port: int
    secret: bytes


class _GatewayPeer:
    def __init__(self, shard: "RouterShard", name: str, connection: FrameConnection) -> None:
        self._shard, self._name, self._connection = shard, name, connection

    def on_frame(self, frame: Any) -> None:
        router, now = self._shard.router, time.monotonic()
        match frame:
            case Enqueue():
                self._shard.post(router.on_enqueue(self._name, frame, now))
            case Withdraw():
                self._shard.post(router.on_withdraw(frame, now))
            case Keep() | Journal() | Release() | Fetch():
                self._shard.post(self._shard.streams.on_frame(self._name, frame, now))

    def on_lost(self) -> None:
        if self._shard.gateways.get(self._name) is self._connection:  # else it has connected anew meanwhile
            del self._shard.gateways[self._name]
            self._shard.router.on_gateway_lost(self._name)
            self._shard.streams.on_gateway_lost(self._name, time.monotonic())


class _ReplicaPeer:
    def __init__(self, shard: "RouterShard") -> None:
        self._shard = shard
        self._info: ReplicaInfo | None = None

    def on_frame(self, frame: Any) -> None:
        router, now = self._shard.router, time.monotonic()
        match frame:
            case Announce():
                self._info = frame.replica
                self._shard.replicas[frame.replica.replica_id] = self
                self._shard.post(router.on_announce(frame, now))
            case Report() if self._info is not None:
                self._shard.post(router.on_report(self._info, frame, now))

    def on_lost(self) -> None:
        if self._info is not None and self._shard.replicas.get(self._info.replica_id) is self:
            del self._shard.replicas[self._info.replica_id]
            self._shard.post(self._shard.router.on_replica_lost(self._info))


class RouterShard:
    """Listens for gateways and replicas, and posts what the router decides."""

    def __init__(self, config: RouterConfig, secret: bytes) -> None:
        self.router = Router(config, policy_of(config))
        self.streams = JournalStore(config.max_resume_bytes)
        self.gateways: dict[str, FrameConnection] = {}
        self.replicas: dict[str, _ReplicaPeer] = {}
        self._server = FrameServer(ToRouter, secret, self._accept)
        self._ticker: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int = 0) -> int:
        """Listen; returns the port (0: any free one)."""
        port = await self._server.listen(host, port)
        self._ticker = asyncio.create_task(self._tick())
        return port

    def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        self._server.close()

    def _accept(self, hello: Hello, connection: FrameConnection) -> FrameHandler:
        if hello.role == "replica":
            return _ReplicaPeer(self)
        self.gateways[hello.name] = connection
        self.post(self.router.on_gateway(hello.name))
        return _GatewayPeer(self, hello.name, connection)

    def post(self, outbox: Outbox) -> None:
        for gateway, message in outbox:
            connection = self.gateways.get(gateway)
            if connection is not None:
                connection.send(message)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.post(self.router.on_tick(time.monotonic()))
            self.streams.on_tick(time.monotonic())
