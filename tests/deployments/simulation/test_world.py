"""Whole simulations: every request ends once, the same seed repeats itself, and the design's claims hold."""

import msgspec
import pytest

from cluster.config import Policy
from deployments.simulation.faults import Kill, Slow
from deployments.simulation.records import End
from deployments.simulation.workload import Arrival, Lengths, merge
from tests.deployments.simulation.simulated_cluster import COST, SHORT, simulated, summary


def test_one_request_takes_the_time_that_its_steps_take() -> None:
    world = simulated(iter([Arrival(1.0, prompt_tokens=100, output_tokens=5)]), num_replicas=1)
    records, delays = world.records, world.setup.delays
    queued = 2 * delays.gateway_router_s
    first = queued + 2 * delays.gateway_replica_s + 0.01 + 100 * 0.0001
    assert records.granted[0] - 1.0 == pytest.approx(queued)
    assert records.first[0] - 1.0 == pytest.approx(first)
    assert records.ended[0] - 1.0 == pytest.approx(first + 4 * 0.01)


@pytest.mark.parametrize("policy", list(Policy))
def test_every_request_ends_once(policy: Policy) -> None:
    workload = msgspec.structs.replace(SHORT, rate=80.0, burst=8.0, num_groups=4, prefix=Lengths(64, 256))
    faults = (Kill(1, at=1.0, back_after_s=1.0), Kill(3, at=2.0), Slow(2, 3.0, at=1.5, for_s=1.0))
    world = simulated(workload.arrivals(1), policy=policy, shards=2, faults=faults)
    records = world.records
    assert len(records) == 400 and world.gateways.num_in_flight == 0
    assert set(records.end) == {End.DONE}, "nothing is refused or late here"
    assert summary(world).num_migrated > 0
    for replica in world.replicas:
        replica.scheduler.check_invariants()
        assert replica.scheduler.load().num_running == 0
    generated = sum(replica.scheduler.load().num_output_tokens for replica in world.replicas)
    assert generated == sum(records.output_tokens), "tokens that had come are not computed a second time"
    for shard in world.shards:
        shard.check_invariants()


def test_the_same_seed_gives_the_same_result() -> None:
    workload = msgspec.structs.replace(SHORT, num_groups=4)
    first, second, other = (summary(simulated(workload.arrivals(seed), shards=2)) for seed in (3, 3, 4))
    assert first == second != other


def test_a_full_queue_refuses_and_a_deadline_ends() -> None:
    workload = msgspec.structs.replace(SHORT, rate=2_000.0)
    refused = simulated(workload.arrivals(1), num_replicas=1, max_queued_requests=20)
    assert summary(refused).num_refused > 100
    late = simulated(workload.arrivals(1), num_replicas=1, timeout_s=1.0)
    found = summary(late)
    assert found.num_late > 100 and found.num_done > 0
    assert max(late.records.ended) < max(late.records.arrived) + 1.0 + 0.3


def test_a_dead_replica_is_replaced_without_a_lost_request() -> None:
    world = simulated(SHORT.arrivals(1), num_replicas=1, faults=(Kill(0, at=2.0, back_after_s=1.0),))
    found = summary(world)
    assert found.num_done == 400 and found.num_migrated > 0
    assert [replica.info.replica_id for replica in world.replicas] == ["replica-0", "replica-0.1"]


def test_binding_late_beats_taking_turns_when_one_replica_is_slow() -> None:
    slow = (Slow(0, 4.0),)
    workload = msgspec.structs.replace(SHORT, rate=60.0)
    late = summary(simulated(workload.arrivals(1), policy=Policy.LEAST_LOADED, faults=slow))
    early = summary(simulated(workload.arrivals(1), policy=Policy.ROUND_ROBIN, faults=slow, binds_early=True))
    assert late.num_done == early.num_done == 400
    assert late.ttft_s.p99 < 0.25 * early.ttft_s.p99


def test_a_flooding_tenant_does_not_move_the_others() -> None:
    quiet = msgspec.structs.replace(SHORT, rate=40.0, tenants={"a": 1.0, "b": 1.0})
    flood = msgspec.structs.replace(SHORT, rate=400.0, tenants={"flood": 1.0})
    alone = summary(simulated(quiet.arrivals(1), num_requests=200))
    flooded = summary(simulated(merge([quiet, flood], 1), num_requests=2_200, max_queued_requests=100))
    step_s = COST.step_s + 64 * COST.prefill_s
    for name in ("a", "b"):
        assert flooded.tenants[name].num_done == flooded.tenants[name].num_requests
        bound = 1.5 * alone.tenants[name].ttft_s.p99 + 12 * step_s  # the longest answer that holds a place
        assert flooded.tenants[name].ttft_s.p99 < bound
    assert flooded.tenants["flood"].num_done < 0.8 * flooded.tenants["flood"].num_requests
    assert flooded.fairness > 0.9


def test_prefix_affinity_finds_more_prefixes_and_keeps_the_balance() -> None:
    workload = msgspec.structs.replace(SHORT, rate=25.0, num_groups=40, prefix=Lengths(256, 512))
    found = {
        policy: summary(simulated(workload.arrivals(1), num_requests=800, policy=policy))
        for policy in (Policy.PREFIX_AFFINITY, Policy.LEAST_LOADED)
    }
    affinity, least = found[Policy.PREFIX_AFFINITY], found[Policy.LEAST_LOADED]
    assert affinity.hit_rate > least.hit_rate + 0.1
    assert affinity.ttft_s.p50 < least.ttft_s.p50
    assert affinity.imbalance < 1.3


def test_idle_shards_take_work_from_loaded_ones() -> None:
    """All prompts begin alike, so all requests come to one of the two shards."""
    workload = msgspec.structs.replace(SHORT, rate=100.0, num_groups=1, prefix=Lengths(32, 32))
    found = summary(simulated(workload.arrivals(1), shards=2))
    assert found.num_moved > 0
    assert found.imbalance < 1.5
