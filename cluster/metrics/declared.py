"""Every metric of Manta on one page: name, kind, where it is counted, labels, buckets, meaning.

Base units only: seconds, tokens, bytes, watts, ratios from 0 to 1. The first label of a metric is the process that it
is counted in, or counted for (`Source`), so that no series ever goes on in another process; sum over it.
`docs/metrics.md` is generated from here, and the dashboards, rules and alerts of `monitoring/` may name nothing else.
"""

from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """As Prometheus has it."""

    COUNTER = "counter"  #: only grows while its process lives
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Source(StrEnum):
    """Whose numbers they are; the name of the first label."""

    GATEWAY = "gateway"
    SHARD = "shard"
    REPLICA = "replica"


class Metric(msgspec.Struct, frozen=True):
    """One metric; `labels` without the one of its source."""

    name: str
    kind: Kind
    source: Source
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()  #: upper bounds, without the infinite one; of histograms

    @property
    def all_labels(self) -> tuple[str, ...]:
        return (str(self.source), *self.labels)


#: From a tenth of a millisecond: the gateway's own share is there.
SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
#: To the default bound on a request's life.
LONG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


def _counter(source: Source, name: str, labels: str, help: str) -> Metric:
    return Metric(f"manta_{name}_total", Kind.COUNTER, source, tuple(labels.split()), help)


def _gauge(source: Source, name: str, labels: str, help: str) -> Metric:
    return Metric(f"manta_{name}", Kind.GAUGE, source, tuple(labels.split()), help)


def _seconds(name: str, buckets: tuple[float, ...], help: str) -> Metric:
    return Metric(f"manta_{name}_seconds", Kind.HISTOGRAM, Source.GATEWAY, ("model",), help, buckets)


# Phases of a call, counted by the gateway that it came to. Of a migrated request every attempt has phases of its own.

GATEWAY_TIME = _seconds("gateway", SHORT, "From the arrival of a call until a router shard is asked for a replica.")
QUEUE_TIME = _seconds("queue", LONG, "An attempt's wait in the router shard's queue, for its turn and for room.")
ROUTE_TIME = _seconds("route", SHORT, "From asking the shard to the grant, less the wait in its queue.")
PREFILL_TIME = _seconds("prefill", LONG, "From handing an attempt to its replica to its first token.")
FIRST_TOKEN_TIME = _seconds("first_token", LONG, "From the arrival of a call to its first token, all waiting included.")
TOKEN_GAP = _seconds(
    "inter_token", LONG, "Between two tokens of one stream as they reach the gateway, migrations included."
)
CALL_TIME = _seconds("request", LONG, "From the arrival of a call to its end.")

CALLS = _counter(
    Source.GATEWAY, "requests", "model tenant outcome",
    "Calls that have ended: `ok`, `client_left`, or the code of the error.",
)  # fmt: skip
CALLS_RUNNING = _gauge(Source.GATEWAY, "requests_running", "model", "Calls under way, waiting ones included.")
PROMPT_TOKENS = _counter(
    Source.GATEWAY, "prompt_tokens", "model tenant",
    "Prompt tokens of ended calls that were given a replica, each prompt once, a resumed stream's not again.",
)  # fmt: skip
CACHED_TOKENS = _counter(
    Source.GATEWAY,
    "cached_tokens",
    "model tenant",
    "Prompt tokens of ended calls found in a prefix cache, each prompt once.",
)
OUTPUT_TOKENS = _counter(
    Source.GATEWAY, "output_tokens", "model tenant", "Tokens handed over by engines, as they come."
)
ERROR_ANSWERS = _counter(
    Source.GATEWAY,
    "error_answers",
    "code",
    "Requests answered with an error: over HTTP before any token, over gRPC at any time; by its code.",
)
AUTH_FAILURES = _counter(
    Source.GATEWAY, "auth_failures", "code", "Of those, requests of somebody who is not known or not allowed."
)
AUTH_REFUSALS = _counter(
    Source.GATEWAY, "auth_refusals", "reason", "Credentials that were not believed, by what is wrong with them."
)
KEY_FETCHES = _counter(
    Source.GATEWAY, "key_fetches", "outcome", "Fetches of an issuer's keys: `ok`, `failed` (the last good ones stay)."
)
PROBES = _counter(
    Source.GATEWAY, "probes", "model outcome",
    "Requests of one token by which an idle gateway tries whether a model answers: `passed`, `failed`, `busy`.",
)  # fmt: skip
READY = _gauge(Source.GATEWAY, "ready", "model", "1: `/health/ready` finds the model ready, 0: it does not.")
LIVE_SHARDS = _gauge(Source.GATEWAY, "live_shards", "", "Router shards that this gateway can ask.")

QUOTA_ALONE = _gauge(
    Source.GATEWAY, "quota_alone", "",
    "Keepers of limits (router shards, or Redis) that this gateway cannot reach: of those limits it grants its share.",
)  # fmt: skip
LEDGER_ROWS_LOST = _counter(
    Source.GATEWAY, "ledger_rows_lost", "", "Calls that are missing in the usage ledger: the disk took nothing more."
)
SINK_FAILURES = _counter(
    Source.GATEWAY, "call_sink_failures", "sink",
    "Calls that one of those that keep account of calls (limits, metrics, traces, log, ledger) failed to take in.",
)  # fmt: skip
LOG_LINES_LOST = _counter(
    Source.GATEWAY, "log_lines_lost", "why",
    "Lines of the gateway's log that are missing: `blocked` (nobody reads standard error), `failed` (a full disk).",
)  # fmt: skip
QUOTA_LOSSES = _counter(Source.GATEWAY, "quota_losses", "", "Times that a keeper of limits could not be reached.")

# The queue.

QUEUED_REQUESTS = _gauge(Source.SHARD, "queued_requests", "model", "Requests that wait in the shard.")
QUEUED_TOKENS = _gauge(Source.SHARD, "queued_tokens", "model", "Prompt tokens of the requests that wait in the shard.")
GRANTS = _counter(Source.SHARD, "grants", "model", "Attempts that were given a replica.")
REFUSALS = _counter(Source.SHARD, "refusals", "model reason", "Requests refused by the shard, by the error's code.")
MIGRATIONS = _counter(Source.SHARD, "migrations", "model", "Attempts that go on with a request that had one before.")
MOVES = _counter(Source.SHARD, "moves", "model", "Requests moved to a shard whose replicas were idle.")
WASTED_TOKENS = _counter(
    Source.SHARD, "wasted_tokens", "model why",
    "Tokens computed for nothing: `preempted` (computed again after a preemption), `migrated` (by attempts that ended "
    "before their request), `aborted` (output of requests whose client left, or whose time was over).",
)  # fmt: skip
BREAKER_TRIPS = _counter(Source.SHARD, "breaker_trips", "model", "Times that a replica's circuit breaker opened.")
REPLICAS = _gauge(
    Source.SHARD, "replicas", "model state",
    "Replicas announced to the shard: `serving`, `draining`, `rebuilding` (a lost rank is replaced), `silent` (no "
    "report for a second), `open` or `half_open` (their breaker).",
)  # fmt: skip
CONDEMNED = _gauge(Source.SHARD, "condemned_requests", "", "Requests refused for a while, for they end replicas.")
GATEWAYS = _gauge(Source.SHARD, "gateways", "", "Gateways connected to the shard.")

# Replicas, as they report to the shard ten times a second.

STEPS = _counter(Source.REPLICA, "steps", "model", "Steps of the engine.")
BATCH = _gauge(Source.REPLICA, "batch_size_requests", "model", "Sequences that are computed together.")
ENGINE_WAITING = _gauge(Source.REPLICA, "waiting_requests", "model", "Sequences that wait inside the engine.")
PENDING_TOKENS = _gauge(Source.REPLICA, "pending_prompt_tokens", "model", "Prompt tokens still to compute.")
KV_USED = _gauge(Source.REPLICA, "kv_used_ratio", "model", "Part of the KV cache that is neither free nor evictable.")
KV_CAPACITY = _gauge(Source.REPLICA, "kv_capacity_tokens", "model", "Tokens that the KV cache holds.")
CREDIT_REQUESTS = _gauge(Source.REPLICA, "credit_requests", "model", "Requests that the shard may still grant.")
CREDIT_TOKENS = _gauge(
    Source.REPLICA, "credit_tokens", "model",
    "KV cache in tokens that the shard may still grant. Below 0: what runs is expected to grow past the cache.",
)  # fmt: skip
PREEMPTIONS = _counter(Source.REPLICA, "preemptions", "model", "Sequences whose blocks were taken, to run again later.")
ENGINE_PROMPT_TOKENS = _counter(
    Source.REPLICA, "engine_prompt_tokens", "model", "Prompt tokens admitted, of every attempt."
)
ENGINE_CACHED_TOKENS = _counter(Source.REPLICA, "engine_cached_tokens", "model", "Of those, found in the prefix cache.")
ENGINE_OUTPUT_TOKENS = _counter(Source.REPLICA, "engine_output_tokens", "model", "Tokens sampled, of every attempt.")
REPORT_AGE = _gauge(Source.REPLICA, "report_age_seconds", "model", "Time since the replica last reported.")
REBUILDS = _counter(Source.REPLICA, "rebuilds", "model", "Times that lost ranks of the replica were replaced.")
STARTUP_TIME = _gauge(Source.REPLICA, "startup_seconds", "model phase", "How long each phase of the start took.")

_GPU = " Only where NVML (the extra `gpu`) can read it."
GPU_MEMORY_USED = _gauge(
    Source.REPLICA, "gpu_memory_used_bytes", "model gpu", "Memory in use, by all processes." + _GPU
)
GPU_MEMORY = _gauge(Source.REPLICA, "gpu_memory_bytes", "model gpu", "Memory of the device." + _GPU)
GPU_BUSY = _gauge(Source.REPLICA, "gpu_utilization_ratio", "model gpu", "Part of the time that kernels ran." + _GPU)
GPU_POWER = _gauge(Source.REPLICA, "gpu_power_watts", "model gpu", "Power drawn." + _GPU)
GPU_FAULTY = _gauge(Source.REPLICA, "gpu_faulty", "model gpu", "1: the device is lost, or has had a fault." + _GPU)

DECLARED: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
