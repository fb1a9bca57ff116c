"""A replica whose two stages are on two hosts, which are two Ray nodes of this machine: `... ADDRESS FILE`.

The second node is added to the cluster at this address and taken away again. What happens is told in the file, a line
of JSON each.
"""

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
from engine.config import DType, EngineConfig
from engine.core import EngineCore

SECOND = "127.0.0.2"
ENGINE = EngineConfig(dtype=DType.FLOAT32, max_model_len=256, max_num_seqs=4, kv_cache_tokens=2048)
CONFIG = MantaConfig(models=(ModelConfig(pipeline_parallel=2, engine=ENGINE, rank_timeout_s=5.0),))


class Driver:
    """As the Serve replica: the actor in the first bundle."""

    def start(self) -> dict[str, Any]:
        from deployments.stage_host import ReplicaSpawner
        from engine.startup import start_engine_of_ranks
        from parallel.layout import RankLayout

        (model,) = CONFIG.models
        self._spawner = ReplicaSpawner(CONFIG, model)
        layout = RankLayout(pipeline_parallel=2)
        self._core, info = start_engine_of_ranks(
            model.location, ENGINE, layout, spawner=self._spawner, rank_timeout_s=5.0
        )
        return {"pids": info.rank_pids, "addresses": [place.address for place in self._spawner.places]}

    def generate(self) -> list[int]:
        return generate(self._core)

    def generate_alone(self) -> list[int]:
        """By an engine of one rank."""
        from engine.startup import start_engine

        return generate(start_engine(CONFIG.models[0].location, ENGINE)[0])

    def pid(self) -> int:
        return os.getpid()


def generate(core: EngineCore) -> list[int]:
    from tests.engine.drive_engine import drive, request, tokens

    return tokens(drive(core, [(0, request("a", [1, 2, 3], max_tokens=24))])["a"])


def tell(**said: object) -> None:
    with Path(sys.argv[2]).open("a") as file:
        file.write(json.dumps(said) + "\n")


def has_ended(pid: int, patience_s: float = 10.0) -> bool:
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def main(address: str) -> None:
    parameters = RayParams(
        gcs_address=address, node_ip_address=SECOND, num_cpus=2, object_store_memory=80 * 1024 * 1024,
        dashboard_agent_listen_port=0,
    )  # fmt: skip
    second = Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=True)
    ray.init(address=address, namespace="manta", log_to_driver=False)
    try:
        group = placement_group([{"CPU": 0.4}, {"CPU": 0.4}], strategy="STRICT_SPREAD")
        ray.get(group.ready(), timeout=30)
        for lose in (lose_a_rank, lose_the_driver):
            lose(group)
    finally:
        ray.shutdown()
        second.kill_all_processes(check_alive=False, allow_graceful=False)


def new_driver(group: Any) -> tuple[Any, dict[str, Any]]:
    strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
    driver = ray.remote(num_cpus=0.4, scheduling_strategy=strategy)(Driver).remote()
    return driver, ray.get(driver.start.remote(), timeout=60)


def lose_a_rank(group: Any) -> None:
    """The one on the second host."""
    driver, started = new_driver(group)
    alone, ranks = ray.get([driver.generate_alone.remote(), driver.generate.remote()], timeout=60)
    tell(addresses=started["addresses"], is_exact=alone == ranks, num_tokens=len(ranks))
    os.kill(started["pids"][1], signal.SIGKILL)
    try:
        ray.get(driver.generate.remote(), timeout=30)
    except ray.exceptions.RayTaskError as error:
        tell(lost=str(error.cause))
    ray.kill(driver)
    tell(ended=[has_ended(pid) for pid in started["pids"]])


def lose_the_driver(group: Any) -> None:
    """With one of its ranks frozen on the second host."""
    driver, started = new_driver(group)
    os.kill(started["pids"][1], signal.SIGSTOP)
    os.kill(ray.get(driver.pid.remote()), signal.SIGKILL)
    tell(ended=[has_ended(pid) for pid in started["pids"]])


if __name__ == "__main__":
    main(sys.argv[1])
