"""RouterLink: keeps one connection to a router shard, through restarts of the actor."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from deployments.transport import FrameConnection, connect

RETRY_S = 0.2
FIND_S = 5.0  #: a question to an actor that has just died may never be answered
logger = logging.getLogger("manta.router_link")


@dataclass(frozen=True, slots=True)
class RouterAddress:
    """How to reach a router shard, and with which secret."""

    host: str
    port: int
    secret: bytes


@dataclass(frozen=True, slots=True)
class Shards:
    """All router shards of a cluster: `find(k)` tells where shard k listens now."""

    count: int
    find: Callable[[int], Awaitable[RouterAddress]]
    secret: bytes


class RouterPeer(Protocol):
    """What a gateway, a replica or another shard does with its connection to a router shard."""

    def on_router(self, connection: FrameConnection) -> None: ...

    def on_router_frame(self, frame: Any) -> None: ...

    def on_router_lost(self) -> None: ...


class RouterLink:
    """Dials, and dials again when the connection is lost, until closed. `find` gives the shard's present address."""

    def __init__(
        self, find: Callable[[], Awaitable[RouterAddress]], kinds: Any, hello: tuple[str, str], peer: RouterPeer
    ) -> None:
        self._find, self._kinds, self._hello, self._peer = find, kinds, hello, peer
        self._lost = asyncio.Event()
        self._task = asyncio.create_task(self._keep())
        self._connection: FrameConnection | None = None

    def on_frame(self, frame: Any) -> None:
        self._peer.on_router_frame(frame)

    def on_lost(self) -> None:
        self._lost.set()

    async def _keep(self) -> None:
        while True:
            self._lost.clear()
            try:
                address = await asyncio.wait_for(self._find(), FIND_S)
                where = (address.host, address.port)
                self._connection = await connect(where, self._kinds, address.secret, self._hello, self)
            except Exception as error:  # the actor may be restarting; whatever is wrong, trying again is the remedy
                logger.warning("the router is not reachable (%s: %s); trying again", type(error).__name__, error)
                await asyncio.sleep(RETRY_S)
                continue
            self._peer.on_router(self._connection)
            await self._lost.wait()
            self._peer.on_router_lost()

    def drop(self) -> None:
        """End this connection, for a new one."""
        if self._connection is not None:
            self._connection.close()

    def close(self) -> None:
        self._task.cancel()
        if self._connection is not None:
            self._connection.close()
