"""GatewayMetrics: what one gateway counts, and the page of all numbers that it answers `GET /metrics` with."""

import asyncio
from collections.abc import Callable, Mapping

from starlette.types import Receive, Scope, Send

from cluster.frames import ReplicaInfo
from cluster.metrics import declared
from cluster.metrics.call_meters import CallMeters
from cluster.metrics.declared import Metric, Source
from cluster.metrics.exposition import CONTENT_TYPE, render
from cluster.metrics.instruments import Instruments
from cluster.metrics.scrapes import Scrapes
from cluster.metrics.snapshot import Snapshot
from cluster.streams.dispatcher import Dispatcher

HEADERS = [(b"content-type", CONTENT_TYPE.encode()), (b"cache-control", b"no-store")]


class GatewayMetrics:
    """`calls` is a sink for `cluster.calls.calls`; `scrapes` needs the links to the shards."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.instruments = Instruments()
        self.calls = CallMeters(self.instruments)
        self.scrapes = Scrapes(self.snapshot, lambda: dispatcher.live_shards)
        self._dispatcher = dispatcher
        self._counted_elsewhere: list[tuple[Metric, Callable[[], Mapping[str, int]]]] = []

    def read_from(self, metric: Metric, counts: Callable[[], Mapping[str, int]]) -> None:
        """Of this metric each snapshot tells what `counts` then gives, by its one label."""
        self._counted_elsewhere.append((metric, counts))

    def replicas(self) -> Mapping[str, ReplicaInfo]:
        """Those that some shard announces, by id."""
        return self._dispatcher.replicas

    def snapshot(self) -> Snapshot:
        """This gateway's numbers, now."""
        self.instruments.number(declared.LIVE_SHARDS).value = len(self._dispatcher.live_shards)
        for metric, counts in self._counted_elsewhere:
            for label, count in counts().items():
                self.instruments.number(metric, label).value = count
        return Snapshot(Source.GATEWAY, self._dispatcher.name, self.instruments.families())

    async def send_page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Everybody's numbers, in pieces between which streams go on."""
        snapshots = await self.scrapes.gather()
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        for piece in render(snapshots):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
