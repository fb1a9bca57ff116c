"""What a router shard counts of itself and knows of its replicas, as snapshots for the metrics page."""

from collections import Counter

from cluster.metrics import declared
from cluster.metrics.declared import Source
from cluster.metrics.snapshot import Families, Snapshot
from cluster.router.model_pool import ModelPool
from cluster.router.router import Router
from cluster.routing.replica_state import ReplicaState

SILENT_S = 1.0  #: a replica reports ten times a second
SERVING, DRAINING, REBUILDING, SILENT = "serving", "draining", "rebuilding", "silent"
STATES = (SERVING, DRAINING, REBUILDING, SILENT, "open", "half_open")


def shard_snapshot(router: Router, number: int, num_gateways: int, now: float) -> Snapshot:
    """The queue, and the replicas by state."""
    families = Families()
    families.add(declared.CONDEMNED, router.num_condemned)
    families.add(declared.GATEWAYS, num_gateways)
    for model, pool in router.pools.items():
        families.add(declared.QUEUED_REQUESTS, len(pool.queue), model)
        families.add(declared.QUEUED_TOKENS, pool.queue.shares.num_tokens, model)
        families.add(declared.GRANTS, pool.num_granted, model)
        families.add(declared.MIGRATIONS, pool.num_migrations, model)
        families.add(declared.MOVES, pool.num_moved, model)
        families.add(declared.BREAKER_TRIPS, pool.fleet.breakers.num_openings, model)
        families.add(declared.WASTED_TOKENS, pool.num_recomputed_tokens, model, "preempted")
        families.add(declared.WASTED_TOKENS, pool.ledger.num_lost_tokens, model, "migrated")
        families.add(declared.WASTED_TOKENS, pool.ledger.num_aborted_tokens, model, "aborted")
        for code, number_refused in pool.num_refused.items():
            families.add(declared.REFUSALS, number_refused, model, code)
        states = Counter(_state(pool, replica, now) for replica in pool.fleet.replicas.values())
        for state in STATES:
            families.add(declared.REPLICAS, states[state], model, state)
    return Snapshot(Source.SHARD, str(number), families.samples)


def _state(pool: ModelPool, replica: ReplicaState, now: float) -> str:
    """What keeps requests from it, if anything does."""
    if replica.is_draining:
        return REBUILDING if replica.comes_back else DRAINING
    if now - replica.reported_at > SILENT_S:
        return SILENT
    breaker = str(pool.fleet.breakers.state(replica.replica_id))
    return SERVING if breaker == "closed" else breaker


def replica_snapshot(replica: ReplicaState, now: float) -> Snapshot:
    """What the replica last reported, and what the shard makes of it."""
    families, model, engine = Families(), replica.info.model, replica.info.engine
    age_s = now - replica.reported_at
    families.add(declared.REPORT_AGE, age_s, model)
    families.add(declared.KV_CAPACITY, engine.kv_cache_tokens, model)
    families.add(declared.REBUILDS, engine.num_rebuilds, model)
    for phase, seconds in engine.startup_s.items():
        families.add(declared.STARTUP_TIME, seconds, model, phase)
    load = replica.load
    if load is not None:
        for metric, value in (
            (declared.STEPS, load.step),
            (declared.BATCH, load.num_running),
            (declared.ENGINE_WAITING, load.num_waiting),
            (declared.PENDING_TOKENS, load.queued_tokens),
            (declared.KV_USED, 1.0 - load.free_blocks / engine.num_blocks),
            (declared.CREDIT_REQUESTS, replica.credit_slots),
            (declared.CREDIT_TOKENS, replica.credit_blocks * engine.block_size),
            (declared.PREEMPTIONS, load.num_preemptions),
            (declared.ENGINE_PROMPT_TOKENS, load.num_prompt_tokens),
            (declared.ENGINE_CACHED_TOKENS, load.num_cached_tokens),
            (declared.ENGINE_OUTPUT_TOKENS, load.num_output_tokens),
        ):
            families.add(metric, value, model)
    for reading in replica.gpus:
        for metric, read in (
            (declared.GPU_MEMORY_USED, reading.memory_used_bytes),
            (declared.GPU_MEMORY, reading.memory_bytes),
            (declared.GPU_BUSY, reading.utilization),
            (declared.GPU_POWER, reading.power_watts),
            (declared.GPU_FAULTY, float(bool(reading.fault))),
        ):
            if read is not None:
                families.add(metric, read, model, reading.gpu)
    return Snapshot(Source.REPLICA, replica.replica_id, families.samples, age_s)
