"""ReplicaServer: the sockets around one engine loop: requests in, one frame per step and gateway out, load reports.

Lives in the replica's event loop; the engine's own thread calls `on_step`, which hops over once per step.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from cluster.frames import (
    Announce,
    Beat,
    Cancel,
    Failed,
    GpuReading,
    Hello,
    Leave,
    ReplicaInfo,
    Report,
    Submit,
    Tokens,
    ToReplica,
    Vitals,
)
from deployments.transport import FrameConnection, FrameHandler, FrameServer
from engine.config import EngineInfo
from engine.errors import EngineAway, EngineDead, RequestRefused
from engine.request import EngineLoad, GenerateRequest, TokenChunk
from engine.step_progress import EngineProgress

BEAT_S = 0.1
IDLE_BEATS = 10  #: a gateway without work here gets every tenth beat
IDLE_REPORTS = 2  #: a report that would say nothing new is due every second beat


class Engine(Protocol):
    """The part of `engine.engine_loop.EngineLoop` that a replica uses."""

    def submit(self, request: GenerateRequest) -> None: ...

    def cancel(self, request_id: str, attempt: int | None = None) -> None: ...

    def progress(self) -> EngineProgress: ...


class _GatewayPeer:
    def __init__(self, server: "ReplicaServer", connection: FrameConnection) -> None:
        self._server, self._connection = server, connection

    def on_frame(self, frame: Any) -> None:
        match frame:
            case Submit():
                self._server.submit(frame.request, self._connection)
            case Cancel():
                self._server.cancel(frame.request_id, frame.attempt)

    def on_lost(self) -> None:
        self._server.gateway_lost(self._connection)


class ReplicaServer:
    """One engine's door: `listen`, then `announce` once the engine is ready."""

    def __init__(self, engine: Engine, secret: bytes) -> None:
        self._engine = engine
        self._server = FrameServer(ToReplica, secret, self._accept)
        self._gateways: set[FrameConnection] = set()
        self._owners: dict[tuple[str, int], FrameConnection] = {}  #: by request id and attempt
        self._is_leaving = False
        self._is_away = False  #: until its engine is rebuilt
        self._submitted: deque[tuple[str, int]] = deque()  #: not yet seen in a load, oldest first
        self._accepted: list[tuple[str, int]] = []  #: seen in a load, not yet reported
        self._num_accepted = 0
        self._router: FrameConnection | None = None
        self._announcement: ReplicaInfo | None = None
        self._load: EngineLoad | None = None
        self._reported: tuple[int, int] = (-1, -1)
        self._has_news = True  #: the engine has moved since the last report
        self._num_beats = 0

    async def listen(self, host: str, port: int = 0) -> int:
        """Returns the port (0: any free one)."""
        return await self._server.listen(host, port)

    def announce(self, info: ReplicaInfo, load: EngineLoad) -> None:
        """The engine is ready: from now on the router may know."""
        self._announcement, self._load, self._is_away = info, load, False
        if self._router is not None:
            self.on_router(self._router)

    def go_away(self) -> None:
        """The engine takes nothing until `come_back`."""
        self._is_away = True
        if self._router is not None:
            self._router.send(Leave(comes_back=True))

    def come_back(self, engine: EngineInfo) -> None:
        """The engine is ready again."""
        assert self._announcement is not None and self._load is not None
        info = msgspec.structs.replace(self._announcement, engine=engine, pids=list(engine.rank_pids))
        self.announce(info, self._load)

    @property
    def num_requests(self) -> int:
        """Submitted here and not at their end."""
        return len(self._owners)

    async def close_gently(self, timeout_s: float) -> None:
        """Close once what was sent has left. What still runs here is over, and not by a death."""
        owners, self._owners = self._owners, {}
        for key, gateway in owners.items():
            gateway.send(Failed(*key, "the replica has ended", retryable=True))
        self.close()
        await self._server.wait_closed(timeout_s)

    def close(self) -> None:
        self._server.close()

    # Gateways

    def _accept(self, hello: Hello, connection: FrameConnection) -> FrameHandler:
        self._gateways.add(connection)
        return _GatewayPeer(self, connection)

    def submit(self, request: GenerateRequest, gateway: FrameConnection) -> None:
        key = (request.request_id, request.attempt)
        try:
            if self._is_leaving:
                raise EngineDead("the replica takes no more requests")
            self._engine.submit(request)
        except (RequestRefused, EngineAway, EngineDead) as error:
            gateway.send(Failed(*key, str(error), retryable=not isinstance(error, RequestRefused)))
            self._accepted.append(key)
            if isinstance(error, EngineDead) and not self._is_leaving:
                self.leave()
            return
        self._owners[key] = gateway
        self._submitted.append(key)

    def cancel(self, request_id: str, attempt: int) -> None:
        if self._owners.pop((request_id, attempt), None) is not None:
            self._engine.cancel(request_id, attempt)

    def gateway_lost(self, gateway: FrameConnection) -> None:
        """Nobody reads these any more."""
        self._gateways.discard(gateway)
        for key in [key for key, owner in self._owners.items() if owner is gateway]:
            self.cancel(*key)

    # The engine

    def on_step(self, chunks: list[TokenChunk], load: EngineLoad) -> None:
        """What one engine step gave, in the event loop."""
        self._load, self._has_news = load, True
        frames: dict[FrameConnection, list[TokenChunk]] = {}
        for chunk in chunks:
            owner = self._owners.get((chunk.request_id, chunk.attempt))
            if owner is not None:
                frames.setdefault(owner, []).append(chunk)
                if chunk.finish is not None:
                    del self._owners[(chunk.request_id, chunk.attempt)]
        for gateway, mine in frames.items():
            gateway.send(Tokens(load.step, mine))
        while self._num_accepted < load.num_accepted and self._submitted:
            self._accepted.append(self._submitted.popleft())
            self._num_accepted += 1
        if self._accepted or (load.free_slots, load.free_blocks) != self._reported:
            self._report()

    # The router

    def on_router(self, connection: FrameConnection) -> None:
        self._router = connection
        if self._announcement is not None:
            connection.send(Announce(self._announcement))
            self._report()
            if self._is_leaving or self._is_away:
                connection.send(Leave(comes_back=not self._is_leaving))

    def leave(self) -> None:
        """Take no more requests; what runs here goes on."""
        if self._is_leaving:
            return
        self._is_leaving = True
        if self._router is not None:
            self._router.send(Leave())
        self._beat_to(self._gateways)

    def tell_vitals(self, gpus: list[GpuReading]) -> None:
        """To the router, how the devices are."""
        if self._router is not None:
            self._router.send(Vitals(gpus))

    def on_router_lost(self) -> None:
        self._router = None

    def _report(self) -> None:
        if self._router is None or self._load is None:
            return
        self._reported = (self._load.free_slots, self._load.free_blocks)
        self._has_news = False
        self._router.send(Report(self._load, self._accepted))
        self._accepted = []

    # Time

    def beat(self) -> None:
        """Say to those who wait that this event loop turns. Call every `BEAT_S` once the engine is ready."""
        if self._has_news or self._accepted or self._num_beats % IDLE_REPORTS == 0:
            self._report()
        gateways = self._gateways if self._num_beats % IDLE_BEATS == 0 else set(self._owners.values())
        self._beat_to(gateways)
        self._num_beats += 1

    def _beat_to(self, gateways: Iterable[FrameConnection]) -> None:
        beat = Beat(*self._engine.progress(), not self._is_leaving)
        for gateway in gateways:
            gateway.send(beat)
