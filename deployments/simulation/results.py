"""Figures of a finished simulation, computed from its records and its replicas."""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from deployments.simulation.records import NEVER, End, Records
from deployments.simulation.replica import SimulatedReplica
from deployments.simulation.world import World

Column = npt.NDArray[np.float64]


class Objective(msgspec.Struct, frozen=True):
    """What a client calls good: first token and each later one within these times."""

    ttft_s: float = 2.0
    per_token_s: float = 0.1


class Percentiles(msgspec.Struct, frozen=True):
    """In seconds."""

    mean: float
    p50: float
    p90: float
    p99: float


class TenantSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What one tenant got."""

    num_requests: int
    num_done: int
    ttft_s: Percentiles
    tokens_per_s: float  #: prompt and output, of its finished requests
    replicas: float  #: that its finished requests have kept busy, on average, by the cost model


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one run."""

    num_requests: int
    num_done: int
    num_refused: int
    num_late: int
    num_migrated: int  #: requests with more than one attempt
    num_moved: int  #: between shards
    num_preemptions: int
    seconds: float  #: simulated, from the first arrival to the last end
    queue_s: Percentiles  #: from arrival to the first grant
    ttft_s: Percentiles
    per_token_s: Percentiles  #: mean time per token after the first, by request
    requests_per_s: float
    output_tokens_per_s: float
    goodput: float  #: share of the requests that met the objective
    goodput_per_s: float  #: requests that met it, per second
    hit_rate: float  #: prompt tokens found in a prefix cache
    busy: float  #: share of the time that replicas compute
    imbalance: float  #: busiest replica's computing time over the mean; 1 is even
    spread: float  #: standard deviation over replicas of places taken, as a share of all places; mean over time
    fairness: float  #: replicas that the tenant worst off kept busy, over its max-min fair share; 1 is fair
    tenants: dict[str, TenantSummary]


def summarise(world: World, objective: Objective, weights: Mapping[str, float]) -> Summary:
    """All figures of a finished simulation; `weights` are the tenants' (1 where none is given)."""
    records = world.records
    arrived, first, ended = (np.asarray(column) for column in (records.arrived, records.first, records.ended))
    end, output = np.asarray(records.end), np.asarray(records.output_tokens)
    done = end == End.DONE
    seconds = max(1e-9, float(ended.max() - arrived.min())) if len(records) else 1e-9
    per_token = (ended[done] - first[done]) / np.maximum(1, output[done] - 1)
    good = (first[done] - arrived[done] <= objective.ttft_s) & (per_token <= objective.per_token_s)
    loads = [replica.scheduler.load() for replica in world.replicas]
    busy = np.array([replica.usage.busy_s for replica in world.replicas])
    granted = np.asarray(records.granted)
    was_granted = granted != NEVER
    work_s = _work_s(world)
    tenants = {name: _tenant(records, index, seconds, work_s) for name, index in records.tenants.items()}
    return Summary(
        num_requests=len(records),
        num_done=int(done.sum()),
        num_refused=int((end == End.REFUSED).sum()),
        num_late=int((end == End.LATE).sum()),
        num_migrated=int((np.asarray(records.num_attempts) > 1).sum()),
        num_moved=world.gateways.num_moved,
        num_preemptions=sum(load.num_preemptions for load in loads),
        seconds=round(seconds, 3),
        queue_s=_percentiles(granted[was_granted] - arrived[was_granted]),
        ttft_s=_percentiles(first[done] - arrived[done]),
        per_token_s=_percentiles(per_token),
        requests_per_s=round(float(done.sum()) / seconds, 2),
        output_tokens_per_s=round(float(output[done].sum()) / seconds, 1),
        goodput=round(float(good.sum()) / max(1, len(records)), 4),
        goodput_per_s=round(float(good.sum()) / seconds, 2),
        hit_rate=round(
            _share([load.num_cached_tokens for load in loads], [load.num_prompt_tokens for load in loads]), 4
        ),
        busy=round(float(busy.sum()) / seconds / world.setup.num_replicas, 4),
        imbalance=round(float(busy.max() / busy.mean()) if busy.any() else 1.0, 3),
        spread=round(float(np.mean([sample.spread for sample in records.samples])), 4),
        fairness=round(_fairness(records, work_s, weights), 4),
        tenants=tenants,
    )


def _percentiles(values: Column) -> Percentiles:
    if not len(values):
        return Percentiles(0.0, 0.0, 0.0, 0.0)
    points = np.percentile(values, (50, 90, 99))
    return Percentiles(*(round(float(value), 5) for value in (values.mean(), *points)))


def _share(part: Sequence[int], whole: Sequence[int]) -> float:
    return sum(part) / max(1, sum(whole))


def _work_s(world: World) -> Column:
    """Engine time that each request takes, by the cost model: of a step it has one place among the usual number."""
    cost, records = world.setup.cost, world.records
    columns = (records.prompt_tokens, records.cached_tokens, records.output_tokens)
    prompt, cached, output = (np.array(column, dtype=np.float64) for column in columns)
    num_steps = sum(replica.scheduler.load().step for replica in world.replicas)
    places = sum(replica.usage.num_decode_tokens for replica in world.replicas) / max(1, num_steps)
    per_output_s = cost.step_s / max(1.0, places) + cost.decode_s + cost.context_s * (prompt + output / 2)
    work_s: Column = cost.prefill_s * (prompt - cached) + output * per_output_s
    return work_s


def _tenant(records: Records, index: int, seconds: float, work_s: Column) -> TenantSummary:
    mine = np.asarray(records.tenant) == index
    done = mine & (np.asarray(records.end) == End.DONE)
    ttft = np.asarray(records.first)[done] - np.asarray(records.arrived)[done]
    num_tokens = np.asarray(records.prompt_tokens)[done].sum() + np.asarray(records.output_tokens)[done].sum()
    return TenantSummary(
        num_requests=int(mine.sum()),
        num_done=int(done.sum()),
        ttft_s=_percentiles(ttft),
        tokens_per_s=round(float(num_tokens) / seconds, 1),
        replicas=round(float(work_s[done].sum()) / seconds, 3),
    )


def _fairness(records: Records, work_s: Column, weights: Mapping[str, float]) -> float:
    """Least ratio of the work done for a tenant to what max-min sharing of all work done would have given it."""
    tenant, done = np.asarray(records.tenant), np.asarray(records.end) == End.DONE
    names = list(records.tenants)
    asked = {name: float(work_s[tenant == index].sum()) for name, index in records.tenants.items()}
    served = {name: float(work_s[done & (tenant == index)].sum()) for name, index in records.tenants.items()}
    fair = max_min_shares(asked, {name: weights.get(name, 1.0) for name in names}, sum(served.values()))
    return min((served[name] / fair[name] for name in names if fair[name] > 0.0), default=1.0)


def max_min_shares(asked: Mapping[str, float], weights: Mapping[str, float], total: float) -> dict[str, float]:
    """Share `total` by weight; nobody gets more than asked, and what is left over is shared again."""
    shares = dict.fromkeys(asked, 0.0)
    hungry = [name for name in asked if asked[name] > 0.0]
    while hungry and total > 1e-9:
        level = total / sum(weights[name] for name in hungry)
        content = [name for name in hungry if asked[name] - shares[name] <= level * weights[name]]
        for name in content or hungry:
            given = asked[name] - shares[name] if content else level * weights[name]
            shares[name] += given
            total -= given
        hungry = [name for name in hungry if name not in content] if content else []
    return shares


def busiest(replicas: Sequence[SimulatedReplica]) -> list[float]:
    """Seconds each replica has computed, the busiest first."""
    return sorted((replica.usage.busy_s for replica in replicas), reverse=True)
