"""RouterActor: the Ray actor around one router shard; gives it a name and a life of its own.

One per queue shard, named and detached, restarted for ever; ends by itself when nobody has been connected for a while.
The actor also keeps the cluster secret: whoever may call Ray actors may know it, nobody else learns it.
"""

import asyncio
import logging
import secrets
import time
from typing import Any

import msgspec
import ray

from cluster.config import RouterConfig
from deployments.router_shard import RouterAddress, RouterShard

NAMESPACE = "manta"
UNUSED_S = 60.0
logger = logging.getLogger("manta.router")


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
