"""Replica: an engine core with its loop, its door for gateways and its links to the router shards. Without Ray."""

import asyncio
import itertools
from collections.abc import Callable
from functools import partial

import msgspec

from cluster.frames import ReplicaInfo
from deployments.gpu_watch import GpuWatch
from deployments.replica_links import ReplicaLinks
from deployments.replica_server import BEAT_S, ReplicaServer
from deployments.router_link import Shards
from engine.config import EngineInfo
from engine.core import EngineCore
from engine.engine_loop import EngineLoop
from engine.errors import EngineDead
from engine.request import EngineLoad, TokenChunk

BEATS_PER_VITALS = 20


class Replica:
    """Owns the thread and the sockets around `core`. `on_dead` is called in the engine's thread; by then all know that
    nothing more is taken here."""

    def __init__(self, core: EngineCore, secret: bytes, on_dead: Callable[[EngineDead], None]) -> None:
        self.core = core
        self.engine = EngineLoop(core, self._on_step, self._engine_died, self._on_rebuild)
        self._tell_death = on_dead
        self.server = ReplicaServer(self.engine, secret)
        self.links: ReplicaLinks | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Task[None] | None = None

    def _on_step(self, chunks: list[TokenChunk], load: EngineLoad) -> None:
        self._loop.call_soon_threadsafe(self.server.on_step, chunks, load)

    def _engine_died(self, error: EngineDead) -> None:
        self._loop.call_soon_threadsafe(self.server.leave)
        self._tell_death(error)

    def _on_rebuild(self, info: EngineInfo | None) -> None:
        change = self.server.go_away if info is None else partial(self.server.come_back, info)
        self._loop.call_soon_threadsafe(change)

    async def start(
        self,
        me: ReplicaInfo,
        shards: Shards,
        home: int,
        on_drain: Callable[[], None],
        gpus: GpuWatch | None = None,
    ) -> None:
        """Listen (at port 0: at any free one), be announced, at `home` if it is live, and serve.

        `on_drain` is called when a shard asks the replica to leave. With a fault of its `gpus` it takes nothing more.
        """
        port = await self.server.listen(me.host, me.port)
        self.links = ReplicaLinks(me.replica_id, self.server, shards, home, on_drain)
        self.server.announce(msgspec.structs.replace(me, port=port), self.core.scheduler.load())
        self._timer = asyncio.create_task(self._beat(self.links, gpus))
        self.engine.start()

    async def _beat(self, links: ReplicaLinks, gpus: GpuWatch | None) -> None:
        for count in itertools.count():
            await asyncio.sleep(BEAT_S)
            links.tick()
            self.server.beat()
            if gpus is not None and count % BEATS_PER_VITALS == 0:
                self.server.tell_vitals(gpus.readings())
            if gpus is not None and gpus.fault:
                self.server.leave()

    @property
    def has_failed(self) -> bool:
        """It beats no longer, though it was started: nobody looks for another shard either."""
        return self._timer is not None and self._timer.done()

    def close(self) -> bool:
        """At once. False if a step was still running after a while."""
        if self._timer is not None:
            self._timer.cancel()
        if self.links is not None:
            self.links.close()
        self.server.close()
        return self.engine.close()
