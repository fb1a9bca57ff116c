"""Scrapes: how a gateway comes by the numbers of all processes when somebody asks for the metrics page.

Each gateway tells one router shard its own now and then; shards know their replicas anyway. Who is asked for the page
asks every shard, once for all that ask meanwhile, and waits for a silent one only so long.
"""

import asyncio
from collections.abc import Callable, Collection

from cluster.frames import Figures, FromRouter, Scrape, Scraped
from cluster.metrics.snapshot import Snapshot, newest
from cluster.streams.inquiry import Inquiry
from cluster.streams.link import Link

ANSWER_S = 1.0
TELL_S = 2.0


class Scrapes:
    """`own` gives this gateway's numbers now, `live` the shards that speak."""

    def __init__(self, own: Callable[[], Snapshot], live: Callable[[], Collection[int]]) -> None:
        self._own, self._live = own, live
        self._links: dict[int, Link] = {}
        self._told_at = 0.0
        self._ticket = 0
        self._inquiry: Inquiry[list[Snapshot]] = Inquiry(set())
        self._gathering: asyncio.Task[list[Snapshot]] | None = None

    def on_router(self, shard: int, link: Link) -> None:
        self._links[shard] = link

    def on_router_lost(self, shard: int) -> None:
        self._links.pop(shard, None)
        self._inquiry.gone(shard)

    def on_tick(self, now: float) -> None:
        """Tell a shard, if it is time."""
        alive = [shard for shard in self._live() if shard in self._links]
        if alive and now - self._told_at >= TELL_S:
            self._told_at = now
            self._links[min(alive)].send(Figures(self._own()))

    def on_router_frame(self, shard: int, frame: FromRouter) -> None:
        if isinstance(frame, Scraped) and frame.ticket == self._ticket:
            self._inquiry.answered(shard, frame.snapshots)

    async def gather(self) -> list[Snapshot]:
        """Of all processes that are known."""
        if self._gathering is None or self._gathering.done():
            self._gathering = asyncio.create_task(self._gather())
        return await asyncio.shield(self._gathering)

    async def _gather(self) -> list[Snapshot]:
        self._ticket += 1
        asked = {shard for shard in self._live() if shard in self._links}
        inquiry = self._inquiry = Inquiry(asked)
        for shard in asked:
            self._links[shard].send(Scrape(self._ticket))
        await inquiry.wait(ANSWER_S)  # the page tells how many shards there are
        return newest([self._own(), *(snapshot for answer in inquiry.found for snapshot in answer)])
