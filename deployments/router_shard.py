"""RouterShard: the sockets and the clock around one `cluster.router.router.Router`, in any event loop."""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from cluster.config import RouterConfig
from cluster.frames import (
    Announce,
    Condemn,
    Ended,
    Enqueue,
    Fetch,
    Figures,
    FindReport,
    Frame,
    Hello,
    Journal,
    Keep,
    KeepReports,
    Leave,
    Pulse,
    QuotaTurn,
    Release,
    ReplicaInfo,
    Report,
    Scrape,
    Scraped,
    Spare,
    ToRouter,
    Vitals,
    Withdraw,
)
from cluster.metrics.snapshot import Snapshot
from cluster.quotas.book import Book
from cluster.router.journal_store import JournalStore
from cluster.router.kept_figures import KeptFigures
from cluster.router.report_store import ReportStore
from cluster.router.router import Outbox, Router
from cluster.router.router_figures import replica_snapshot, shard_snapshot
from cluster.routing.policy import policy_of
from deployments.router_link import RouterAddress, RouterLink
from deployments.transport import FrameConnection, FrameHandler, FrameServer

logger = logging.getLogger("manta.router")
TICK_S = 0.125
TICKS_PER_PULSE = 2
TICKS_PER_SWEEP = 480


class _GatewayPeer:
    def __init__(self, shard: "RouterShard", name: str, connection: FrameConnection) -> None:
        self._shard, self._name, self._connection = shard, name, connection

    def on_frame(self, frame: Any) -> None:
        router, now = self._shard.router, time.monotonic()
        router.heard(self._name, now)
        match frame:
            case Enqueue():
                self._shard.post(router.on_enqueue(self._name, frame, now))
            case Withdraw():
                self._shard.post(router.on_withdraw(frame, now))
            case Ended():
                self._shard.post(router.on_ended(frame, now))
            case Condemn():
                self._shard.post(router.on_condemn(frame, now))
            case Keep() | Journal() | Release() | Fetch():
                self._shard.post(self._shard.streams.on_frame(self._name, frame, now))
            case Figures():
                self._shard.figures.said(frame.snapshot, now)
            case KeepReports():
                self._shard.reports.on_keep(frame)
            case FindReport():
                self._connection.send(self._shard.reports.on_find(frame))
            case Scrape():
                self._connection.send(Scraped(frame.ticket, self._shard.snapshots(now)))
            case QuotaTurn():
                answer = self._shard.quotas.turn(self._name, frame, now)
                if answer is not None:
                    self._connection.send(answer)

    def on_lost(self) -> None:
        self._shard.listeners.discard(self._connection)
        if self._shard.gateways.get(self._name) is self._connection:  # else it has connected anew meanwhile
            del self._shard.gateways[self._name]
            self._shard.router.on_gateway_lost(self._name)
            self._shard.streams.on_gateway_lost(self._name, time.monotonic())
            self._shard.figures.gone(self._name, time.monotonic())
            self._shard.quotas.lost(self._name, time.monotonic())


class _ReplicaPeer:
    """A replica that is linked; the shard counts it as its own once it has announced itself."""

    def __init__(self, shard: "RouterShard", connection: FrameConnection) -> None:
        self._shard, self._connection = shard, connection
        self._info: ReplicaInfo | None = None

    def on_frame(self, frame: Any) -> None:
        router, now = self._shard.router, time.monotonic()
        match frame:
            case Announce():
                self._info = frame.replica
                self._shard.replicas[frame.replica.replica_id] = self._connection
                self._shard.post(router.on_announce(frame, now))
            case Report() if self._info is not None:
                self._shard.post(router.on_report(self._info, frame, now))
            case Leave() if self._info is not None:
                self._shard.post(router.on_leave(self._info, frame, now))
            case Vitals() if self._info is not None:
                router.on_vitals(self._info, frame)

    def on_lost(self) -> None:
        self._shard.listeners.discard(self._connection)
        if self._info is not None and self._shard.replicas.get(self._info.replica_id) is self._connection:
            del self._shard.replicas[self._info.replica_id]
            self._shard.remember(self._info)
            self._shard.post(self._shard.router.on_replica_lost(self._info))


class _OtherShard:
    """Another shard, whichever of the two has dialled."""

    def __init__(self, shard: "RouterShard", number: int) -> None:
        self._shard, self._number = shard, number
        self._connection: FrameConnection | None = None

    def on_router(self, connection: FrameConnection) -> None:
        self._shard.others[self._number] = self._connection = connection

    def on_frame(self, frame: Any) -> None:
        if isinstance(frame, Spare):
            self._shard.post(self._shard.router.on_spare(frame, time.monotonic()))

    def on_lost(self) -> None:
        if self._shard.others.get(self._number) is self._connection:
            del self._shard.others[self._number]

    on_router_frame, on_router_lost = on_frame, on_lost


class RouterShard:
    """Shard `number`: listens for gateways, replicas and the shards after it, and posts what the router decides."""

    def __init__(self, config: RouterConfig, secret: bytes, number: int = 0) -> None:
        self.router = Router(config, policy_of(config), number)
        self.number = number
        self.streams = JournalStore(config.max_resume_bytes)
        self.reports = ReportStore()
        self.figures = KeptFigures()
        self.quotas = Book()
        self.gateways: dict[str, FrameConnection] = {}
        self.replicas: dict[str, FrameConnection] = {}
        self.others: dict[int, FrameConnection] = {}
        self.listeners: set[FrameConnection] = set()  #: who hears the pulse
        self._links: list[RouterLink] = []
        self._server = FrameServer(ToRouter, secret, self._accept)
        self._ticker: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int = 0) -> int:
        """Listen; returns the port (0: any free one)."""
        port = await self._server.listen(host, port)
        self._ticker = asyncio.create_task(self._tick())
        self._ticker.add_done_callback(self._tick_ended)
        return port

    @property
    def has_failed(self) -> bool:
        """It ticks no longer, and has let go of everybody."""
        return self._ticker is not None and self._ticker.done() and not self._ticker.cancelled()

    def join(self, find: Callable[[int], Awaitable[RouterAddress]]) -> None:
        """Stay connected to the shards before this one; `find(k)` tells where shard k listens."""
        hello = ("router", str(self.number))
        self._links = [
            RouterLink(partial(find, earlier), ToRouter, hello, _OtherShard(self, earlier))
            for earlier in range(self.number)
        ]

    def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        for link in self._links:
            link.close()
        self._server.close()

    def _tick_ended(self, ticker: asyncio.Task[None]) -> None:
        """A shard that cannot tick holds nothing back: its peers see it end and go elsewhere."""
        if not ticker.cancelled():
            logger.critical("the shard has failed", exc_info=ticker.exception())
            self.close()

    def snapshots(self, now: float) -> list[Snapshot]:
        """All that the shard can tell of numbers: its own, its replicas', the gateways' and those of the dead."""
        own = shard_snapshot(self.router, self.number, len(self.gateways), now)
        replicas = [replica_snapshot(replica, now) for replica in self.router.replicas()]
        return [own, *replicas, *self.figures.all(now)]

    def remember(self, lost: ReplicaInfo) -> None:
        """What a replica that is about to be forgotten has counted."""
        now = time.monotonic()
        for replica in self.router.replicas():
            if replica.replica_id == lost.replica_id:
                self.figures.gone(lost.replica_id, now, replica_snapshot(replica, now))

    def drain(self, replica_id: str) -> bool:
        """Ask a replica to take its leave; False if it is not announced here."""
        order, connection = self.router.drain(replica_id), self.replicas.get(replica_id)
        if order is None or connection is None:
            return False
        connection.send(order)
        return True

    def _accept(self, hello: Hello, connection: FrameConnection) -> FrameHandler:
        if hello.role == "router":
            other = _OtherShard(self, int(hello.name))
            other.on_router(connection)
            return other
        self.listeners.add(connection)
        if hello.role == "replica":
            return _ReplicaPeer(self, connection)
        self.gateways[hello.name] = connection
        self.post(self.router.on_gateway(hello.name))
        return _GatewayPeer(self, hello.name, connection)

    def post(self, outbox: Outbox) -> None:
        for gateway, message in outbox:
            connection = self.gateways.get(gateway)
            if connection is not None:
                connection.send(message)

    async def _tick(self) -> None:
        for count in itertools.count():
            await asyncio.sleep(TICK_S)
            self.post(self.router.on_tick(time.monotonic()))
            self.streams.on_tick(time.monotonic())
            self.figures.expire(time.monotonic())
            self._cut_off_the_silent()
            if self.others:
                for spare in self.router.spare():
                    _send_all(self.others.values(), spare)
            if count % TICKS_PER_PULSE == 0:
                _send_all(self.listeners, Pulse())
            if count % TICKS_PER_SWEEP == 0:
                self.quotas.sweep()

    def _cut_off_the_silent(self) -> None:
        """A connection may be dead on the other side alone; who is only frozen dials again when it wakes."""
        for gateway in self.router.silent_gateways():
            logger.warning("gateway %s uses no grant and says nothing; it is cut off", gateway)
            self.gateways[gateway].abort()
        for replica_id in self.router.hopeless_replicas(time.monotonic()):
            logger.warning("replica %s reports nothing; it is cut off", replica_id)
            self.replicas[replica_id].abort()


def _send_all(connections: Iterable[FrameConnection], frame: Frame) -> None:
    for connection in connections:
        connection.send(frame)
