"""RouterActor: the Ray actor around one router shard; gives it a name and a life of its own.

One per queue shard, named and detached, restarted for ever; ends by itself when nobody has been connected for a while.
Nothing in it must outlive it: what it is configured with and the cluster secret are in `deployments.router_store`.
"""

import asyncio
import logging
import os
import time
from typing import Any

import ray

from cluster.config import RouterConfig
from deployments.json_logs import log_as_json
from deployments.router_link import RouterAddress
from deployments.router_shard import RouterShard
from deployments.router_store import cluster_secret, publish_router_config, published_router_config
from deployments.settled_heap import settle_heap

NAMESPACE = "manta"
UNUSED_S = 60.0
ANSWER_S = 1.0
logger = logging.getLogger("manta.router")


class RouterActor:
    """Shard `number` as a Ray actor: `join` tells gateways, replicas and other shards where it listens."""

    def __init__(self, number: int) -> None:
        log_as_json()
        self._number = number
        self._secret = cluster_secret()
        self._config = published_router_config()
        self._shard = RouterShard(self._config, self._secret, number)
        self._address: asyncio.Task[RouterAddress] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._phases: dict[str, dict[str, float]] = {}

    async def join(self) -> RouterAddress:
        """Where the shard listens. An actor whose shard has failed ends, and Ray starts it anew."""
        if self._shard.has_failed:
            os._exit(1)
        if self._address is None:
            self._address = asyncio.create_task(self._start())
        return await asyncio.shield(self._address)

    async def _start(self) -> RouterAddress:
        host = ray.util.get_node_ip_address()
        settle_heap()
        port = await self._shard.start(host)
        self._shard.join(join_router)
        self._watcher = self._watcher or asyncio.create_task(self._end_when_unused())
        return RouterAddress(host, port, self._secret)

    async def configure(self) -> None:
        """Take up the published configuration, if it is another one: as after a restart, everybody joins again."""
        config = published_router_config()
        if config != self._config:
            self._config = config
            self._shard.close()
            self._shard = RouterShard(config, self._secret, self._number)
            self._address = None

    async def drain(self, replica_id: str) -> bool:
        """Ask a replica to take its leave; False if it is not announced here."""
        return self._shard.drain(replica_id)

    async def stayers(self, model: str, weights_revision: str) -> set[str]:
        """Ids of the replicas here that have these weights and do not drain."""
        return {
            replica.info.replica_id
            for replica in self._shard.router.replicas()
            if (replica.info.model, replica.info.engine.weights_revision) == (model, weights_revision)
            and not replica.is_draining
        }

    async def note_phase(self, replica: str, phase: str, seconds: float) -> None:
        """A replica that is starting has begun (`seconds` 0) or ended a phase; `manta serve` shows it."""
        self._phases.setdefault(replica, {})[phase] = seconds

    async def status(self) -> dict[str, Any]:
        """The shard, its queues and its replicas, as plain values."""
        status = self._shard.router.status(time.monotonic())
        return {**status, "gateways": sorted(self._shard.gateways), "starting": self._phases}

    async def _end_when_unused(self) -> None:
        """Two quiet looks in a row, a minute apart, and the actor removes itself."""
        unused_before = False
        while True:
            await asyncio.sleep(UNUSED_S)
            unused = not self._shard.listeners
            if unused and unused_before:
                logger.info("nobody is connected; the router shard ends")
                ray.kill(ray.get_runtime_context().current_actor)
            unused_before = unused


def router_shard(number: int) -> Any:
    """The handle of a shard's actor, which is created if there is none."""
    actor: Any = ray.remote(num_cpus=0.001, max_restarts=-1)(RouterActor)
    options = {"lifetime": "detached", "get_if_exists": True, "scheduling_strategy": "SPREAD"}  # a host's loss is one's
    return actor.options(name=router_name(number), namespace=NAMESPACE, **options).remote(number)


def configure_routers(config: RouterConfig) -> None:
    """Publish the configuration; shards that run with another one take it up, shards that do not run are started."""
    publish_router_config(config)
    for number in range(config.shards):
        router_shard(number).configure.remote()


async def join_router(number: int) -> RouterAddress:
    """Where a shard listens now. The actor is looked up anew: its handle may be that of one that has ended."""
    address: RouterAddress = await router_shard(number).join.remote()
    return address


async def find_stayers(num_shards: int, model: str, weights_revision: str) -> set[str]:
    """Over all shards; one that does not answer is not waited for."""
    asked = [router_shard(number).stayers.remote(model, weights_revision) for number in range(num_shards)]
    answers = await asyncio.gather(*(asyncio.wait_for(answer, ANSWER_S) for answer in asked), return_exceptions=True)
    return set().union(*(answer for answer in answers if not isinstance(answer, BaseException)))


def router_name(number: int) -> str:
    return f"manta-router-{number}"
