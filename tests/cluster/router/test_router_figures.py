"""What a shard says of itself and its replicas is what happened."""

import msgspec

from cluster.frames import Ended, GpuReading, Leave, Outcome, Report, Vitals
from cluster.metrics import declared
from cluster.metrics.declared import Metric
from cluster.metrics.snapshot import Snapshot
from cluster.router.router_figures import STATES, replica_snapshot, shard_snapshot
from tests.cluster.router_world import add_replica, descriptor, load, router


def value(snapshot: Snapshot, metric: Metric, *labels: str) -> float:
    [found] = [sample.values for sample in snapshot.families[metric.name] if sample.labels == list(labels)]
    return found[0]


def test_the_queue_and_what_was_refused() -> None:
    shard = router(max_queued_requests=2)
    shard.on_gateway("g")
    for number in range(5):
        shard.on_enqueue("g", descriptor(f"q{number}", tokens=3), 0.0)
    figures = shard_snapshot(shard, 0, 1, 0.0)
    assert value(figures, declared.QUEUED_REQUESTS, "m") == 2
    assert value(figures, declared.QUEUED_TOKENS, "m") == 6
    assert value(figures, declared.GATEWAYS) == 1
    assert value(figures, declared.REFUSALS, "m", "server_is_overloaded") == 3


def test_tokens_computed_for_nothing_by_their_reason() -> None:
    shard = router()
    shard.on_gateway("g")
    info = add_replica(shard, "r1")
    for name in ("moved", "left", "done"):
        shard.on_enqueue("g", descriptor(name, tokens=4), 0.0)
    shard.on_ended(Ended("moved", 0, "m", "default", "r1", Outcome.FAILED, 3, 1), 1.0)
    shard.on_ended(Ended("left", 0, "m", "default", "r1", Outcome.NEUTRAL, 5, finished=True), 1.0)
    shard.on_ended(Ended("done", 0, "m", "default", "r1", Outcome.OK, 7, finished=True), 1.0)
    shard.on_report(info, Report(msgspec.structs.replace(load(), num_recomputed_tokens=11), []), 1.0)
    figures = shard_snapshot(shard, 0, 1, 1.0)
    found = {why: value(figures, declared.WASTED_TOKENS, "m", why) for why in ("preempted", "migrated", "aborted")}
    assert found == {"preempted": 11, "migrated": 4 - 1 + 3, "aborted": 5}
    assert value(figures, declared.GRANTS, "m") == 3


def test_every_replica_is_in_one_state() -> None:
    shard = router()
    draining, late = add_replica(shard, "r1", 9.9), add_replica(shard, "r2", 1.0)
    add_replica(shard, "r3", 9.9)
    shard.on_leave(draining, Leave(), 10.0)
    shard.on_leave(add_replica(shard, "r4", 9.9), Leave(comes_back=True), 10.0)
    figures = shard_snapshot(shard, 0, 0, 10.0)
    found = {state: value(figures, declared.REPLICAS, "m", state) for state in STATES}
    assert found == {"serving": 1, "draining": 1, "rebuilding": 1, "silent": 1, "open": 0, "half_open": 0}
    [silent] = [replica for replica in shard.replicas() if replica.replica_id == late.replica_id]
    assert value(replica_snapshot(silent, 10.0), declared.REPORT_AGE, "m") == 9.0


def test_a_replica_tells_its_load_and_its_devices_where_they_can_be_read() -> None:
    shard = router()
    info = add_replica(shard, "r1", free_slots=1, free_blocks=16, queued_tokens=9)
    [replica] = shard.replicas()
    figures = replica_snapshot(replica, 0.0)
    assert value(figures, declared.BATCH, "m") == 3
    assert value(figures, declared.KV_USED, "m") == 0.75
    assert value(figures, declared.KV_CAPACITY, "m") == 64 * 4
    assert value(figures, declared.CREDIT_REQUESTS, "m") == 1
    assert value(figures, declared.PENDING_TOKENS, "m") == 9
    assert not any(name.startswith("manta_gpu") for name in figures.families), "what cannot be read is not zero"
    shard.on_vitals(info, Vitals([GpuReading("GPU-1", 10, 20, power_watts=300.0, fault="fell off the bus")]))
    figures = replica_snapshot(replica, 0.0)
    assert value(figures, declared.GPU_MEMORY_USED, "m", "GPU-1") == 10
    assert value(figures, declared.GPU_POWER, "m", "GPU-1") == 300.0
    assert value(figures, declared.GPU_FAULTY, "m", "GPU-1") == 1
    assert declared.GPU_BUSY.name not in figures.families
