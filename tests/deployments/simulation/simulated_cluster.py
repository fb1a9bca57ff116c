"""A small cluster of fast, round-numbered engines for tests: a step takes 10 ms, a prompt token 0.1 ms."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from cluster.config import Policy, RouterConfig, TenantConfig
from deployments.simulation.cost_model import CostModel
from deployments.simulation.faults import Fault
from deployments.simulation.results import Objective, Summary, summarise
from deployments.simulation.workload import Arrival, Lengths, Workload
from deployments.simulation.world import Setup, World

COST = CostModel(
    name="round", source="made up", is_measured=False,
    step_s=0.01, decode_s=0.0, prefill_s=0.0001, context_s=0.0,
    max_num_seqs=4, max_batched_tokens=512, block_size=16, num_blocks=256, max_model_len=2048,
)  # fmt: skip
SHORT = Workload(rate=40.0, prompt=Lengths(16, 64), output=Lengths(4, 24))


def simulated(
    arrivals: Iterator[Arrival],
    *,
    num_requests: int = 400,
    num_replicas: int = 4,
    policy: Policy = Policy.LEAST_LOADED,
    shards: int = 1,
    tenants: dict[str, float] | None = None,
    faults: tuple[Fault, ...] = (),
    timeout_s: float = 600.0,
    binds_early: bool = False,
    **router: Any,
) -> World:
    """The world after its last request has ended."""
    weights = {name: TenantConfig(weight=weight) for name, weight in (tenants or {}).items()}
    config = RouterConfig(policy=policy, shards=shards, tenants=weights, **router)
    setup = Setup(
        cost=COST,
        router=config,
        num_replicas=num_replicas,
        faults=faults,
        timeout_s=timeout_s,
        binds_early=binds_early,
    )
    world = World(setup, islice(arrivals, num_requests))
    world.run()
    return world


def summary(world: World) -> Summary:
    return summarise(world, Objective(ttft_s=0.5, per_token_s=0.05), {})
