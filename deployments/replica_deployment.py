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
from cluster.frames import ReplicaInfo
from cluster.replica.engine_watch import EngineWatch
from cluster.replica.home_shard import preferred_shard
from cluster.replica.replica_drain import ReplicaDrain
from deployments.gpu_watch import watch_gpus
from deployments.json_logs import log_as_json
from deployments.leave import Leave
from deployments.replica import Replica
from deployments.router_actor import find_stayers, join_router, router_shard
from deployments.router_link import Shards
from deployments.router_store import cluster_secret, publish_router_config
from deployments.settled_heap import settle_heap
from deployments.stage_host import ReplicaSpawner, take_place
from deployments.take_leave import drain_replica
from deployments.termination import on_sigterm
from engine.chain_startup import start_chain_engine
from engine.config import EngineInfo
from engine.core import EngineCore
from engine.errors import EngineDead
from engine.openmp import wait_briefly
from parallel.cores import leave_parts
from parallel.layout import RankLayout

logger = logging.getLogger("manta.replica")
T = TypeVar("T")


class ReplicaDeployment:
    """Loads the model, then listens, then announces itself to the router: in this order it becomes ready."""

    async def __init__(self, config: str, model: str) -> None:  # type: ignore[misc]  # Serve awaits it
        log_as_json()
        self._config = msgspec.json.decode(config, type=MantaConfig)
        self._model = self._config.model(model)
        context = serve.get_replica_context()
        self._replica_id = context.replica_id.unique_id
        self._rank: int = context.rank.rank if context.rank is not None else 0
        self._rank_hosts: list[str] = []
        self._dead: EngineDead | None = None
        self._watch = EngineWatch()
        self._loop = asyncio.get_running_loop()
        publish_router_config(self._config.router)
        core, info = await _in_passing_thread(self._start_engine)
        self._weights_revision = info.weights_revision
        self._leave = Leave(self._drain)
        on_sigterm(lambda: self._loop.call_soon_threadsafe(self._leave.begin))
        shards = Shards(self._config.router.shards, join_router, cluster_secret())
        self._replica = Replica(core, shards.secret, self._on_dead)
        home = preferred_shard(self._rank, self._model.replicas, shards.count)
        host, pids = ray.util.get_node_ip_address(), list(info.rank_pids) or [os.getpid()]
        me = ReplicaInfo(self._replica_id, model, host, 0, pids, os.uname().nodename, info, self._rank_hosts)
        settle_heap()
        self._gpus = watch_gpus() if info.device.startswith("cuda") else None
        await self._replica.start(me, shards, home, self._leave.begin, self._gpus)

    def _start_engine(self) -> tuple[EngineCore, EngineInfo]:
        if self._model.is_chain:
            return start_chain_engine(self._model.engine, self._model.chain)
        wait_briefly()  # before torch brings OpenMP
        from engine.startup import start_engine, start_engine_of_ranks  # import torch, which only engines need

        model = self._model
        note = router_shard(0).note_phase.remote

        def tell(phase: str, seconds: float) -> None:
            note(self._replica_id, phase, seconds)

        if model.num_ranks == 1:
            place = take_place(self._config, model)
            return start_engine(
                model.location, model.engine, cores=place.cores[0], num_replicas=place.num_sharing, progress=tell
            )
        layout = RankLayout(model.tensor_parallel, model.pipeline_parallel)
        spawner = ReplicaSpawner(self._config, model)
        self._rank_hosts = [spawner.hosts[layout.position(rank).pp_rank] for rank in range(layout.world_size)]
        return start_engine_of_ranks(
            model.location,
            model.engine,
            layout,
            spawner=spawner,
            rank_timeout_s=model.rank_timeout_s,
            num_spares=model.spare_ranks,
            progress=tell,
        )

    async def _drain(self) -> None:
        leave_parts()  # its successor may have the cores
        drain = ReplicaDrain(self._loop.time(), self._model.drain_s, self._model.grace_s)
        await drain_replica(self._replica.server, self._replica.engine, drain, self._has_others)

    async def _has_others(self) -> bool:
        """Whether another replica has these weights and stays."""
        found = await find_stayers(self._config.router.shards, self._model.served_name, self._weights_revision)
        return bool(found - {self._replica_id})

    def _on_dead(self, error: EngineDead) -> None:
        logger.error("%s", error)
        self._dead = error

    def check_health(self) -> None:
        """Serve replaces the replica when engine or GPU is lost, it is stuck, or it leaves; being busy is no reason."""
        if self._dead is not None:
            raise self._dead
        if self._leave.has_begun:
            raise RuntimeError("the replica drains")
        if self._gpus is not None and self._gpus.fault:
            raise RuntimeError(self._gpus.fault)
        if self._replica.has_failed:
            raise RuntimeError("the replica gives no signs of life")
        progress, is_busy, patience_s = self._replica.engine.progress()
        if self._model.num_ranks > 1:  # a lost rank is for the replica itself to find and to replace
            patience_s = max(patience_s, self._model.rank_timeout_s)
        if self._watch.is_stuck(progress, is_busy, patience_s, now=self._loop.time()):
            raise RuntimeError("the engine is busy and does not move")

    async def __del__(self) -> None:
        """Serve calls it when the replica is to stop, and waits."""
        leave = getattr(self, "_leave", None)
        if leave is not None:
            await leave.wait()


async def _in_passing_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread that has ended when its result is here.

    OpenMP gives each thread that computes a team of its own, and as soon as it counts more threads than cores their
    waiting turns from spinning to sleeping (engine steps then take twice as long). So the thread that loads and warms
    up must not live beside the engine loop's.
    """
    with ThreadPoolExecutor(1) as executor:
        return await asyncio.get_running_loop().run_in_executor(executor, work)
