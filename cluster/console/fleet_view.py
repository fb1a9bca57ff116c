"""FleetView: what the console shows of the fleet, from the numbers of all processes at two moments.

Rates and percentiles are of the time between them. Plain code: snapshots in, a message for the page out.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import msgspec

from cluster.frames import ReplicaInfo
from cluster.metrics import declared
from cluster.metrics.declared import Metric, Source
from cluster.metrics.snapshot import Snapshot


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """One model; rates per second, times in seconds, None: nothing has happened."""

    model: str
    running: int
    queued_requests: int
    queued_tokens: int
    tokens_per_s: float
    requests_per_s: float
    refusals_per_s: float
    first_token_p50: float | None
    first_token_p99: float | None
    inter_token_p50: float | None
    inter_token_p99: float | None


class ReplicaView(msgspec.Struct, frozen=True, kw_only=True):
    """One replica. `ranks`: their process ids."""

    replica: str
    model: str
    node: str
    ranks: list[int]
    batch: int
    waiting: int
    kv_used: float
    kv_capacity: int
    tokens_per_s: float
    steps_per_s: float
    report_age_s: float


class ShardView(msgspec.Struct, frozen=True, kw_only=True):
    """One shard of the queue."""

    shard: str
    queued_requests: int
    queued_tokens: int
    grants_per_s: float
    gateways: int


class FleetView(msgspec.Struct, frozen=True, kw_only=True):
    """Everything, at `at` (seconds since 1970). `happened`: what a person would want to be told of."""

    at: float
    models: list[ModelView]
    replicas: list[ReplicaView]
    shards: list[ShardView]
    gateways: list[str]
    happened: list[str]


class Numbers:
    """The numbers of all processes at one moment: sums over whatever a question leaves open."""

    def __init__(self, snapshots: Iterable[Snapshot], at: float) -> None:
        self.at = at
        self._snapshots = {(snapshot.source, snapshot.process): snapshot for snapshot in snapshots}

    def processes(self, source: Source) -> list[str]:
        """Those that live: of the dead only counters are told."""
        mark = {
            Source.REPLICA: declared.REPORT_AGE,
            Source.SHARD: declared.GATEWAYS,
            Source.GATEWAY: declared.LIVE_SHARDS,
        }
        return sorted(
            process
            for (kind, process), snapshot in self._snapshots.items()
            if kind is source and mark[source].name in snapshot.families
        )

    def values(self, metric: Metric, process: str | None = None, model: str | None = None) -> list[float]:
        """Added up, position by position; empty if there is nothing."""
        total: list[float] = []
        place = metric.labels.index("model") if model is not None else 0
        for (source, name), snapshot in self._snapshots.items():
            if source is metric.source and process in (None, name):
                for sample in snapshot.families.get(metric.name, ()):
                    if model is None or sample.labels[place] == model:
                        total = [a + b for a, b in zip(total or [0.0] * len(sample.values), sample.values, strict=True)]
        return total

    def number(self, metric: Metric, process: str | None = None, model: str | None = None) -> float:
        """The one number of a counter or gauge; 0 if there is none."""
        return sum(self.values(metric, process, model))


class Between:
    """What has happened from one moment to a later one."""

    def __init__(self, before: Numbers, now: Numbers) -> None:
        self._before, self.now = before, now
        self._elapsed_s = max(now.at - before.at, 1e-3)

    def rate(self, metric: Metric, process: str | None = None, model: str | None = None) -> float:
        """Per second. A process that has begun anew has counted from 0 on."""
        return round(self.increase(metric, process, model) / self._elapsed_s, 2)

    def increase(self, metric: Metric, process: str | None = None, model: str | None = None) -> float:
        """Of a counter."""
        now, before = self.now.number(metric, process, model), self._before.number(metric, process, model)
        return now - before if now >= before else now

    def percentile(self, metric: Metric, share: float, model: str) -> float | None:
        """Of what a histogram has counted, as far as its buckets tell."""
        now, before = self.now.values(metric, model=model), self._before.values(metric, model=model)
        counts = [a - b for a, b in zip(now, before or [0.0] * len(now), strict=True)][1:]
        return within_buckets(metric.buckets, counts, share)


def within_buckets(bounds: Sequence[float], counts: Sequence[float], share: float) -> float | None:
    """Where that share of the values ends, if they lie evenly in their buckets; beyond the last bound: that bound."""
    total = sum(counts)
    if total <= 0:
        return None
    edges, wanted, seen = [0.0, *bounds], share * total, 0.0
    for (low, high), count in zip(pairwise(edges), counts, strict=False):
        if count and seen + count >= wanted:
            return low + (high - low) * (wanted - seen) / count
        seen += count
    return bounds[-1]


def fleet_view(between: Between, known: Mapping[str, ReplicaInfo], happened: list[str]) -> FleetView:
    """The whole page. `known`: the replicas that the gateway has been told of."""
    now = between.now
    models = sorted({info.model for info in known.values()})
    return FleetView(
        at=now.at,
        models=[_model(between, model) for model in models],
        replicas=[_replica(between, name, known[name]) for name in now.processes(Source.REPLICA) if name in known],
        shards=[_shard(between, name) for name in now.processes(Source.SHARD)],
        gateways=now.processes(Source.GATEWAY),
        happened=happened,
    )


def changes(between: Between, before: Mapping[str, ReplicaInfo], now: Mapping[str, ReplicaInfo]) -> list[str]:
    """What has come, gone and moved."""
    told = [f"replica {name} of {now[name].model} has come" for name in sorted(now.keys() - before.keys())]
    told += [f"replica {name} of {before[name].model} has gone" for name in sorted(before.keys() - now.keys())]
    for metric, what in (
        (declared.MIGRATIONS, "streams went on at another replica"),
        (declared.PREEMPTIONS, "sequences were preempted"),
        (declared.BREAKER_TRIPS, "circuit breakers opened"),
    ):
        for model in sorted({info.model for info in (*before.values(), *now.values())}):
            number = between.increase(metric, model=model)
            if number > 0:
                told.append(f"{model}: {number:.0f} {what}")
    return told


def _model(between: Between, model: str) -> ModelView:
    now = between.now
    return ModelView(
        model=model,
        running=int(now.number(declared.CALLS_RUNNING, model=model)),
        queued_requests=int(now.number(declared.QUEUED_REQUESTS, model=model)),
        queued_tokens=int(now.number(declared.QUEUED_TOKENS, model=model)),
        tokens_per_s=between.rate(declared.OUTPUT_TOKENS, model=model),
        requests_per_s=between.rate(declared.CALLS, model=model),
        refusals_per_s=between.rate(declared.REFUSALS, model=model),
        first_token_p50=between.percentile(declared.FIRST_TOKEN_TIME, 0.5, model),
        first_token_p99=between.percentile(declared.FIRST_TOKEN_TIME, 0.99, model),
        inter_token_p50=between.percentile(declared.TOKEN_GAP, 0.5, model),
        inter_token_p99=between.percentile(declared.TOKEN_GAP, 0.99, model),
    )


def _replica(between: Between, name: str, info: ReplicaInfo) -> ReplicaView:
    now = between.now
    return ReplicaView(
        replica=name,
        model=info.model,
        node=info.node,
        ranks=info.pids,
        batch=int(now.number(declared.BATCH, name)),
        waiting=int(now.number(declared.ENGINE_WAITING, name)),
        kv_used=round(now.number(declared.KV_USED, name), 4),
        kv_capacity=int(now.number(declared.KV_CAPACITY, name)),
        tokens_per_s=between.rate(declared.ENGINE_OUTPUT_TOKENS, name),
        steps_per_s=between.rate(declared.STEPS, name),
        report_age_s=round(now.number(declared.REPORT_AGE, name), 2),
    )


def _shard(between: Between, name: str) -> ShardView:
    now = between.now
    return ShardView(
        shard=name,
        queued_requests=int(now.number(declared.QUEUED_REQUESTS, name)),
        queued_tokens=int(now.number(declared.QUEUED_TOKENS, name)),
        grants_per_s=between.rate(declared.GRANTS, name),
        gateways=int(now.number(declared.GATEWAYS, name)),
    )
