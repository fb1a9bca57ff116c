"""RouterActor: the Ray actor around `cluster.router`; its socket, its clock and its name.

One per queue shard, named and detached, restarted for ever; ends by itself when nobody has been connected for a while.
The actor also keeps the cluster secret: whoever may call Ray actors may know it, nobody else learns it.
"""

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import ray

from cluster.config import RouterConfig
from cluster.frames import Announce, Enqueue, Hello, ReplicaInfo, Report, ToRouter, Withdraw
from cluster.router import Outbox, Router
from cluster.routing_policy import LeastLoaded
from deployments.transport import FrameConnection, FrameHandler, FrameServer

NAMESPACE = "manta"
TICK_S = 0.1
UNUSED_S = 60.0
logger = logging.getLogger("manta.router")


@dataclass(frozen=True, slots=True)
class RouterAddress:
    """How to reach a router shard, and with which secret."""

    host: str
    port: int
    secret: bytes


class _GatewayPeer:
    def __init__(self, shard: "RouterShard", name: str) -> None:
        self._shard, self._name = shard, name

    def on_frame(self, frame: Any) -> None:
        router, now = self._shard.router, time.monotonic()
        match frame:
            case Enqueue():
                self._shard.post(router.on_enqueue(self._name, frame, now))
            case Withdraw():
                self._shard.post(router.on_withdraw(frame, now))

    def on_lost(self) -> None:
        self._shard.gateways.pop(self._name, None)
        self._shard.router.on_gateway_lost(self._name)


class _ReplicaPeer:
    def __init__(self, shard: "RouterShard") -> None:
        self._shard = shard
        self._info: ReplicaInfo | None = None

    def on_frame(self, frame: Any) -> None:
        router, now = self._shard.router, time.monotonic()
        match frame:
            case Announce():
                self._info = frame.replica
                self._shard.post(router.on_announce(frame, now))
            case Report() if self._info is not None:
                self._shard.post(router.on_report(self._info, frame, now))

    def on_lost(self) -> None:
        if self._info is not None:
            self._shard.post(self._shard.router.on_replica_lost(self._info))


class RouterShard:
    """The sockets around one `Router`; runs in any event loop (the actor's, or a test's)."""

    def __init__(self, config: RouterConfig, secret: bytes) -> None:
        self.router = Router(config, LeastLoaded())
        self.gateways: dict[str, FrameConnection] = {}
        self._server = FrameServer(ToRouter, secret, self._accept)
        self._ticker: asyncio.Task[None] | None = None

    async def start(self, host: str) -> int:
        """Listen on `host`; returns the port."""
        port = await self._server.listen(host)
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
        return _GatewayPeer(self, hello.name)

    def post(self, outbox: Outbox) -> None:
        for gateway, message in outbox:
            connection = self.gateways.get(gateway)
            if connection is not None:
                connection.send(message)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.post(self.router.on_tick(time.monotonic()))


class RouterActor:
    """The shard as a Ray actor: `join` tells gateways and replicas where it listens."""

    def __init__(self, config: bytes, secret: bytes) -> None:
        self._secret = secret
        self._shard = RouterShard(msgspec.json.decode(config, type=RouterConfig), secret)
        self._address: asyncio.Task[RouterAddress] | None = None
        self._phases: dict[str, dict[str, float]] = {}

    async def join(self) -> RouterAddress:
        """Where the shard listens."""
        if self._address is None:
            self._address = asyncio.create_task(self._start())
        return await asyncio.shield(self._address)

    async def _start(self) -> RouterAddress:
        host = ray.util.get_node_ip_address()
        port = await self._shard.start(host)
        self._watcher = asyncio.create_task(self._end_when_unused())
        return RouterAddress(host, port, self._secret)

    async def note_phase(self, replica: str, phase: str, seconds: float) -> None:
        """A replica that is starting has begun (`seconds` 0) or ended a phase; `manta serve` shows it."""
        self._phases.setdefault(replica, {})[phase] = seconds

    async def status(self) -> dict[str, Any]:
        """The shard, its queues and its replicas, as plain values."""
        router = self._shard.router
        now = time.monotonic()
        return {
            "granted": router.num_granted,
            "refused": router.num_refused,
            "gateways": sorted(self._shard.gateways),
            "queues": {
                model: {"requests": len(queue), "tokens": queue.num_tokens} for model, queue in router.queues().items()
            },
            "replicas": [
                {
                    **msgspec.to_builtins(replica.info),
                    "load": None if replica.load is None else msgspec.structs.asdict(replica.load),
                    "granted": len(replica.granted),
                    "report_age_s": now - replica.reported_at,
                }
                for replica in router.replicas()
            ],
            "starting": self._phases,
        }

    async def _end_when_unused(self) -> None:
        """Two quiet looks in a row, a minute apart, and the actor removes itself."""
        unused_before = False
        while True:
            await asyncio.sleep(UNUSED_S)
            unused = self._shard.router.is_unused
            if unused and unused_before:
                logger.info("nobody is connected; the router shard ends")
                ray.kill(ray.get_runtime_context().current_actor)
            unused_before = unused


def router_shard(config: RouterConfig, shard: int = 0) -> Any:
    """The handle of a shard's actor, which is created if there is none."""
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1)(RouterActor)
    named = actor.options(name=router_name(shard), namespace=NAMESPACE, lifetime="detached", get_if_exists=True)
    return named.remote(msgspec.json.encode(config), secrets.token_bytes(32))


def router_name(shard: int = 0) -> str:
    return f"manta-router-{shard}"
