"""ReplicaDeployment: the Serve deployment around one engine. Serve starts, replaces and stops it; tokens go by TCP."""

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec
import ray
from ray import serve

from cluster.config import MantaConfig
from cluster.frames import FromRouter, ReplicaInfo
from deployments.replica_server import ReplicaServer
from deployments.router_actor import router_shard
from deployments.router_link import RouterLink
from deployments.router_shard import RouterAddress
from engine.chain_startup import start_chain_engine
from engine.config import EngineInfo
from engine.core import EngineCore
from engine.engine_loop import EngineLoop
from engine.errors import EngineDead
from engine.openmp import wait_briefly
from engine.request import EngineLoad, TokenChunk
from parallel.cores import CoreShare, read_host_cores, share_cores

logger = logging.getLogger("manta.replica")
T = TypeVar("T")


class ReplicaDeployment:
    """Loads the model, then listens, then announces itself to the router: in this order it becomes ready."""

    async def __init__(self, config: str, model: str) -> None:  # type: ignore[misc]  # Serve awaits it
        self._config = msgspec.json.decode(config, type=MantaConfig)
        self._model = self._config.model(model)
        self._replica_id = serve.get_replica_context().replica_id.unique_id
        self._dead: EngineDead | None = None
        self._loop = asyncio.get_running_loop()
        self._router = router_shard(self._config.router)
        address: RouterAddress = await self._router.join.remote()
        core, info = await _in_passing_thread(self._start_engine)
        self._engine = EngineLoop(core, on_step=self._on_step, on_dead=self._on_dead)
        self._server = ReplicaServer(self._engine, address.secret)
        host = ray.util.get_node_ip_address()
        port = await self._server.listen(host)
        hello = ("replica", self._replica_id)
        self._link = RouterLink(lambda: self._router.join.remote(), FromRouter, hello, self._server)
        me = ReplicaInfo(self._replica_id, model, host, port, [os.getpid()], os.uname().nodename, info)
        self._server.announce(me, core.scheduler.load())
        self._engine.start()

    def _start_engine(self) -> tuple[EngineCore, EngineInfo]:
        if self._model.is_chain:
            return start_chain_engine(self._model.engine, self._model.chain)
        wait_briefly()  # before torch brings OpenMP
        from engine.startup import start_engine  # imports torch, which the process that builds the app never needs

        note = self._router.note_phase.remote
        return start_engine(
            self._model.location,
            self._model.engine,
            cores=self._cores(),
            num_replicas=sum(model.replicas for model in self._config.models),
            progress=lambda phase, seconds: note(self._replica_id, phase, seconds),
        )

    def _cores(self) -> CoreShare:
        """This replica's share of its host: replicas of all models are dealt the cores in the order of the config."""
        before = 0
        for model in self._config.models:
            if model is self._model:
                break
            before += model.replicas
        total = sum(model.replicas for model in self._config.models)
        rank = serve.get_replica_context().rank
        index = before + (rank.local_rank if rank is not None else 0)
        shares = share_cores(read_host_cores(), total)
        return shares[index % total]

    def _on_step(self, chunks: list[TokenChunk], load: EngineLoad) -> None:
        self._loop.call_soon_threadsafe(self._server.on_step, chunks, load)

    def _on_dead(self, error: EngineDead) -> None:
        logger.error("%s", error)
        self._dead = error

    def check_health(self) -> None:
        """Serve replaces the replica when its engine has stopped; being busy is no reason."""
        if self._dead is not None:
            raise self._dead

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.close()


async def _in_passing_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread that has ended when its result is here.

    OpenMP gives each thread that computes a team of its own, and as soon as it counts more threads than cores their
    waiting turns from spinning to sleeping (engine steps then take twice as long). So the thread that loads and warms
    up must not live beside the engine loop's.
    """
    with ThreadPoolExecutor(1) as executor:
        return await asyncio.get_running_loop().run_in_executor(executor, work)
