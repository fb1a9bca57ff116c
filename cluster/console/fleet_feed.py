"""FleetFeed: the fleet as server-sent events, one a second, to all who look; while nobody looks nothing is gathered."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

import msgspec
from starlette.types import Receive, Scope, Send

from cluster.api.stream_events import Event
from cluster.console.fleet_view import Between, Numbers, changes, fleet_view
from cluster.frames import ReplicaInfo
from cluster.gateway.http_exchange import while_client_stays
from cluster.gateway.sse import send_stream
from cluster.metrics.snapshot import Snapshot

PERIOD_S = 1.0
PERCENTILES_S = 10  #: percentiles and rates are of so many seconds
HISTORY = 300  #: views that a page gets when it is opened
STALL_S = 30.0


class FleetFeed:
    """`gather` gives the numbers of all processes, `replicas` those that are announced.

    A gateway that is leaving (`is_leaving`) ends the streams, and the pages ask another one.
    """

    def __init__(
        self,
        gather: Callable[[], Awaitable[list[Snapshot]]],
        replicas: Callable[[], Mapping[str, ReplicaInfo]],
        is_leaving: Callable[[], bool],
    ) -> None:
        self._gather, self._replicas, self._is_leaving = gather, replicas, is_leaving
        self._moments: deque[Numbers] = deque(maxlen=PERCENTILES_S + 1)
        self._views: deque[bytes] = deque(maxlen=HISTORY)
        self._known: dict[str, ReplicaInfo] = {}
        self._num_viewers = 0
        self._changed = asyncio.Event()  #: of the next view; set when it is there
        self._num_views = 0
        self._task: asyncio.Task[None] | None = None

    async def send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The stream of one page."""
        async with while_client_stays(receive):
            await send_stream(send, self._events(), (), STALL_S)

    async def _events(self) -> AsyncGenerator[Event, None]:
        self._num_viewers += 1
        try:
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._run())
            known, seen = list(self._views), self._num_views
            for view in known:
                yield Event(b"", view)
            while not self._is_leaving():
                if self._num_views == seen:
                    await self._changed.wait()
                missed, seen = self._num_views - seen, self._num_views
                for view in list(self._views)[-missed:]:
                    yield Event(b"", view)
        finally:
            self._num_viewers -= 1

    async def _run(self) -> None:
        while self._num_viewers:
            await self._look()
            await asyncio.sleep(PERIOD_S)
        self._moments.clear()

    async def _look(self) -> None:
        now, known = Numbers(await self._gather(), time.time()), dict(self._replicas())
        if self._moments:
            happened = changes(Between(self._moments[-1], now), self._known, known)
            view = fleet_view(Between(self._moments[0], now), known, happened)
            self._views.append(msgspec.json.encode(view))
            self._num_views += 1
            self._changed.set()
            self._changed = asyncio.Event()
        self._moments.append(now)
        self._known = known
