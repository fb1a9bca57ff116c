"""The Grafana dashboards of `monitoring/grafana/` as tables of panels; `scripts.generate_docs` writes them."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

COLUMNS, WIDTH, HEIGHT = 3, 8, 8  #: Grafana's grid has 24 columns
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
MODEL, REPLICA = 'model=~"$model"', 'model=~"$model", replica=~"$replica"'


class Panel(NamedTuple):
    """One graph; `queries`: (expression, legend)."""

    title: str
    unit: str  #: one of Grafana's
    queries: Sequence[tuple[str, str]]


def quantiles(metric: str, *points: float) -> list[tuple[str, str]]:
    """Of a histogram over all gateways, by model."""
    by_bucket = f"sum by (model, le) (rate({metric}_bucket{{{MODEL}}}[$__rate_interval]))"
    return [(f"histogram_quantile({point}, {by_bucket})", f"{{{{model}}}} p{100 * point:g}") for point in points]


def rate(metric: str, *by: str, labels: str = MODEL) -> list[tuple[str, str]]:
    """Of a counter, per second."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    return [(f"sum by ({', '.join(by)}) (rate({metric}{{{labels}}}[$__rate_interval]))", legend)]


def value(metric: str, *by: str, labels: str = MODEL, how: str = "sum") -> list[tuple[str, str]]:
    """Of a gauge."""
    return [(f"{how} by ({', '.join(by)}) ({metric}{{{labels}}})", " ".join(f"{{{{{label}}}}}" for label in by))]


OVERVIEW = [
    Panel("Ready (some gateway gets an answer)", "none", value("manta_ready", "model", how="max")),
    Panel("Replicas by state", "none", value("manta_replicas", "model", "state")),
    Panel("Errors of ours", "percentunit", [(f"manta:errors:ratio_rate5m{{{MODEL}}}", "{{model}}")]),
    Panel("Requests by outcome", "reqps", rate("manta_requests_total", "outcome")),
    Panel("First token", "s", quantiles("manta_first_token_seconds", 0.5, 0.99)),
    Panel("Between two tokens", "s", quantiles("manta_inter_token_seconds", 0.5, 0.99)),
    Panel(
        "Where the first token's time goes (mean)", "s",
        [
            (f"sum(rate(manta_{phase}_seconds_sum{{{MODEL}}}[$__rate_interval])) / "
             f"sum(rate(manta_{phase}_seconds_count{{{MODEL}}}[$__rate_interval]))", phase)
            for phase in ("gateway", "queue", "route", "prefill")
        ],
    ),
    Panel("Whole requests", "s", quantiles("manta_request_seconds", 0.5, 0.99)),
    Panel("Output tokens by tenant", "none", rate("manta_output_tokens_total", "tenant")),
    Panel("Prompt tokens by tenant", "none", rate("manta_prompt_tokens_total", "tenant")),
    Panel(
        "Prompt tokens found in a prefix cache", "percentunit",
        [(f"sum by (model) (rate(manta_engine_cached_tokens_total{{{MODEL}}}[$__rate_interval])) / "
          f"sum by (model) (rate(manta_engine_prompt_tokens_total{{{MODEL}}}[$__rate_interval]))", "{{model}}")],
    ),
    Panel("Waiting requests", "none", value("manta_queued_requests", "model")),
    Panel("Waiting tokens", "none", value("manta_queued_tokens", "model")),
    Panel("Requests refused by the shards", "reqps", rate("manta_refusals_total", "model", "reason")),
    Panel("Errors by code", "reqps", rate("manta_error_answers_total", "code", labels="")),
    Panel("Migrations", "ops", rate("manta_migrations_total", "model")),
    Panel("Tokens computed for nothing", "none", rate("manta_wasted_tokens_total", "model", "why")),
    Panel("Callers who are not known or not allowed", "reqps", rate("manta_auth_failures_total", "code", labels="")),
    Panel("Breakers that opened", "ops", rate("manta_breaker_trips_total", "model")),
    Panel("Probes", "ops", rate("manta_probes_total", "model", "outcome")),
    Panel("Live shards", "none", value("manta_live_shards", "gateway", labels="")),
    Panel("Limits kept alone", "none", value("manta_quota_alone", "gateway", labels="")),
    Panel("Losses of who keeps limits", "ops", rate("manta_quota_losses_total", "gateway", labels="")),
    Panel("Calls missing in the ledger", "ops", rate("manta_ledger_rows_lost_total", "gateway", labels="")),
]  # fmt: skip

REPLICAS = [
    Panel("Output tokens", "none", rate("manta_engine_output_tokens_total", "replica", labels=REPLICA)),
    Panel("Steps", "ops", rate("manta_steps_total", "replica", labels=REPLICA)),
    Panel("Batch size", "none", value("manta_batch_size_requests", "replica", labels=REPLICA)),
    Panel("KV cache in use", "percentunit", value("manta_kv_used_ratio", "replica", labels=REPLICA)),
    Panel("Preemptions", "ops", rate("manta_preemptions_total", "replica", labels=REPLICA)),
    Panel("Credit in requests", "none", value("manta_credit_requests", "replica", labels=REPLICA)),
    Panel("Credit in tokens", "none", value("manta_credit_tokens", "replica", labels=REPLICA)),
    Panel("Prompt tokens to compute", "none", value("manta_pending_prompt_tokens", "replica", labels=REPLICA)),
    Panel("Waiting inside", "none", value("manta_waiting_requests", "replica", labels=REPLICA)),
    Panel("Age of the last report", "s", value("manta_report_age_seconds", "replica", labels=REPLICA)),
    Panel("Start-up by phase", "s", value("manta_startup_seconds", "replica", "phase", labels=REPLICA)),
    Panel("GPU busy", "percentunit", value("manta_gpu_utilization_ratio", "replica", "gpu", labels=REPLICA)),
    Panel(
        "GPU memory in use", "percentunit",
        [(f"manta_gpu_memory_used_bytes{{{REPLICA}}} / manta_gpu_memory_bytes{{{REPLICA}}}", "{{replica}} {{gpu}}")],
    ),
    Panel("GPU power", "watt", value("manta_gpu_power_watts", "replica", "gpu", labels=REPLICA)),
    Panel("GPU faults", "none", value("manta_gpu_faulty", "replica", "gpu", labels=REPLICA)),
]  # fmt: skip


def render_dashboards() -> dict[str, str]:
    """File name -> JSON."""
    return {
        "manta.json": _dashboard("manta", "Manta", OVERVIEW, ["model"]),
        "manta_replicas.json": _dashboard("manta-replicas", "Manta: replicas", REPLICAS, ["model", "replica"]),
    }


def _dashboard(uid: str, title: str, panels: Sequence[Panel], variables: Sequence[str]) -> str:
    page = {
        "uid": uid, "title": title, "tags": ["manta"], "schemaVersion": 39, "refresh": "15s", "editable": True,
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus"},
            *(
                {
                    "name": name, "type": "query", "datasource": DATASOURCE, "refresh": 2, "multi": True,
                    "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"},
                    "query": f"label_values(manta_steps_total, {name})",
                }
                for name in variables
            ),
        ]},
        "panels": list(_placed(panels)),
    }  # fmt: skip
    return json.dumps(page, indent=1) + "\n"


def _placed(panels: Sequence[Panel]) -> Iterator[dict[str, Any]]:
    for number, panel in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        yield {
            "id": number + 1, "type": "timeseries", "title": panel.title, "datasource": DATASOURCE,
            "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + place), "expr": expression, "legendFormat": legend}
                for place, (expression, legend) in enumerate(panel.queries)
            ],
        }  # fmt: skip
