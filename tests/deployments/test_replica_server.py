"""What a replica says, and how often, on its beats. No sockets: connections that keep what is sent."""

from typing import Any, cast

import pytest

from cluster.frames import Announce, Beat, Frame, Hello, ReplicaInfo, Report
from deployments.replica_server import IDLE_BEATS, IDLE_REPORTS, ReplicaServer
from deployments.transport import FrameConnection
from engine.request import EngineLoad, GenerateRequest
from engine.step_progress import EngineProgress
from tests.deployments.serving_world import HOST, chain_engine, request, serving_world, until


class Wire:
    """One side of a connection."""

    def __init__(self) -> None:
        self.sent: list[Frame] = []

    def send(self, frame: Frame) -> None:
        self.sent.append(frame)

    def taken(self, kind: type[Frame]) -> int:
        """How many of this kind were sent since the last look."""
        sent, self.sent = self.sent, []
        return sum(isinstance(frame, kind) for frame in sent)


class RestingEngine:
    def submit(self, request: GenerateRequest) -> None: ...

    def cancel(self, request_id: str, attempt: int | None = None) -> None: ...

    def progress(self) -> EngineProgress:
        return EngineProgress(0, False, 0.0)


class World:
    """A replica that is announced to a shard and known to two gateways."""

    def __init__(self) -> None:
        self.server = ReplicaServer(RestingEngine(), b"secret")
        self.router, self.busy, self.idle = Wire(), Wire(), Wire()
        for wire in (self.busy, self.idle):
            self.server._accept(Hello("gateway", "g", b""), as_connection(wire))
        core, info = chain_engine()
        self.load: EngineLoad = core.scheduler.load()
        self.server.on_router(as_connection(self.router))
        self.server.announce(ReplicaInfo("r0", "m", HOST, 1, [1], "host", info), self.load)

    def beat(self, count: int) -> None:
        for _ in range(count):
            self.server.beat()

    def ask(self) -> None:
        self.server.submit(request("q", [1]), as_connection(self.busy))


def as_connection(wire: Wire) -> FrameConnection:
    return cast(Any, wire)


def test_an_idle_replica_reports_every_second_beat_and_a_changed_one_at_once() -> None:
    world = World()
    assert [type(frame) for frame in world.router.sent] == [Announce, Report]
    world.router.sent.clear()
    world.beat(20)
    assert world.router.taken(Report) == 20 // IDLE_REPORTS
    for _ in range(6):
        world.server.on_step([], world.load)  # as much room as before: the next beat says so
        assert world.router.taken(Report) == 0
        world.beat(1)
        assert world.router.taken(Report) == 1


def test_only_a_gateway_with_work_here_hears_each_beat() -> None:
    world = World()
    world.ask()
    world.beat(2 * IDLE_BEATS)
    assert world.busy.taken(Beat) == 2 * IDLE_BEATS
    assert world.idle.taken(Beat) == 2


def test_what_a_replica_refused_is_reported_with_the_next_beat() -> None:
    world = World()
    world.beat(1)
    world.server.leave()
    world.router.sent.clear()
    world.ask()
    world.beat(1)
    reports = [frame for frame in world.router.sent if isinstance(frame, Report)]
    assert [report.accepted for report in reports] == [[("q", 0)]]


async def test_a_replica_that_cannot_beat_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving_world() as world:
        replica = world.replicas[0]
        assert not replica.has_failed

        def fail() -> None:
            raise AssertionError("the engine's progress is not to be had")

        monkeypatch.setattr(replica.server, "beat", fail)
        await until(lambda: replica.has_failed)
