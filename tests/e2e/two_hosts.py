"""Two replicas, each with a stage on each of two hosts, which are two Ray nodes of this machine: `... ADDRESS FILE`.

The second node is added to the cluster at this address and taken away again. What happens is told in the file, a line
of JSON each.
"""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}

import psutil
import ray
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.config import MantaConfig, ModelConfig
from cluster.frames import ReplicaInfo
from cluster.generation import RequestContext
from deployments.replica import Replica
from deployments.router_link import RouterAddress, Shards
from engine.config import DType, EngineConfig
from engine.core import EngineCore
from tests.deployments.serving_world import HOST, SECRET, ServingWorld, serving_world, until
from tests.engine.drive_engine import drive, request, tokens

SECOND = "127.0.0.2"
NUM_STREAMS, NUM_TOKENS = 6, 150
ENGINE = EngineConfig(dtype=DType.FLOAT32, max_model_len=256, max_num_seqs=4, kv_cache_tokens=2048)
CONFIG = MantaConfig(models=(ModelConfig(replicas=2, pipeline_parallel=2, engine=ENGINE, rank_timeout_s=5.0),))
REQUESTS = [request(str(n), [1 + n, 2, 3], max_tokens=NUM_TOKENS) for n in range(NUM_STREAMS)]


class Driver:
    """As the Serve replica: the actor in the first bundle."""

    async def start(self, name: str, router_port: int) -> dict[str, Any]:
        core, spawner, pids = await asyncio.to_thread(self._start_engine)
        self._replica = Replica(core, SECRET, lambda error: None)
        shards = Shards(1, lambda number: _address(router_port), SECRET)
        me = ReplicaInfo(name, "m", HOST, 0, pids, "host", self._info)
        await self._replica.start(me, shards, 0, lambda: None)
        return {"pid": os.getpid(), "pids": pids, "addresses": [place.address for place in spawner.places]}

    def _start_engine(self) -> tuple[EngineCore, Any, list[int]]:
        from deployments.stage_host import ReplicaSpawner
        from engine.startup import start_engine_of_ranks
        from parallel.layout import RankLayout

        (model,) = CONFIG.models
        spawner, layout = ReplicaSpawner(CONFIG, model), RankLayout(pipeline_parallel=2)
        core, self._info = start_engine_of_ranks(model.location, ENGINE, layout, spawner=spawner, rank_timeout_s=5.0)
        return core, spawner, list(self._info.rank_pids)


async def _address(port: int) -> RouterAddress:
    return RouterAddress(HOST, port, SECRET)


def said_by_one_rank() -> list[list[int]]:
    from engine.startup import start_engine

    chunks = drive(start_engine(CONFIG.models[0].location, ENGINE)[0], [(0, asked) for asked in REQUESTS])
    return [tokens(chunks[asked.request_id]) for asked in REQUESTS]


def tell(**said: object) -> None:
    with Path(sys.argv[2]).open("a") as file:
        file.write(json.dumps(said) + "\n")


def has_ended(pid: int, patience_s: float = 20.0) -> bool:
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


async def new_driver(name: str, router_port: int) -> dict[str, Any]:
    group = placement_group([{"CPU": 0.4}, {"CPU": 0.4}], strategy="STRICT_SPREAD")
    strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
    driver = ray.remote(num_cpus=0.4, scheduling_strategy=strategy)(Driver).remote()
    return {**await driver.start.remote(name, router_port), "actor": driver}


async def read_while(world: ServingWorld, happening: Any) -> list[list[int]]:
    """The tokens of all requests; `happening` is called in the midst of them."""
    got: list[list[int]] = [[] for _ in REQUESTS]

    async def read(number: int) -> None:
        context = RequestContext(model="m", timeout_s=60.0)
        async for chunk in world.dispatcher.stream(REQUESTS[number], context):
            got[number] += chunk.token_ids

    reading = [asyncio.create_task(read(number)) for number in range(NUM_STREAMS)]
    await until(lambda: sum(map(len, got)) > NUM_STREAMS * NUM_TOKENS // 4, timeout_s=60.0)
    happening()
    tell(running=sum(not task.done() for task in reading))
    await asyncio.gather(*reading)
    return got


async def lose_ranks_and_drivers() -> None:
    async with serving_world(num_replicas=0) as world:
        drivers = await asyncio.gather(*(new_driver(name, world.ports[0]) for name in ("r0", "r1")))
        await until(lambda: len(world.links.connections) == 2, timeout_s=20.0)
        tell(addresses=[driver["addresses"] for driver in drivers])
        first, second = drivers
        got = await read_while(world, lambda: os.kill(first["pids"][1], signal.SIGKILL))
        tell(is_exact=got == said_by_one_rank())
        os.kill(second["pids"][1], signal.SIGSTOP)
        for driver in drivers:
            os.kill(driver["pid"], signal.SIGKILL)
        tell(ended=[has_ended(pid) for pid in (*first["pids"], *second["pids"])])


def main(address: str) -> None:
    parameters = RayParams(
        gcs_address=address, node_ip_address=SECOND, num_cpus=2, object_store_memory=80 * 1024 * 1024,
        dashboard_agent_listen_port=0,
    )  # fmt: skip
    second = Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=True)
    ray.init(address=address, namespace="manta", log_to_driver=False)
    try:
        asyncio.run(lose_ranks_and_drivers())
    finally:
        ray.shutdown()
        second.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    main(sys.argv[1])
