"""The tables of `manta status`."""

import io
from typing import Any

from rich.console import Console

from deployments.commands.status import _show


def replica(name: str, host: str) -> dict[str, Any]:
    load = {"num_running": 12, "num_waiting": 3, "free_blocks": 256, "step": 123456}
    return {
        "replica_id": name, "model": "demo", "shard": 0, "host": host, "pids": [1234567], "load": load,
        "engine": {"num_blocks": 1024, "num_rebuilds": 0}, "is_draining": False, "comes_back": False,
        "report_age_s": 0.1, "breaker": "closed", "rank_hosts": [],
    }  # fmt: skip


def shown(*replicas: dict[str, Any]) -> str:
    queue = {"requests": 4, "tokens": 5000, "tenants": {"default": 4}}
    shard = {"shard": 0, "queues": {"demo": queue}, "granted": 9, "refused": 1, "condemned": 0, "gateways": ["g"]}
    out = io.StringIO()
    _show({"shards": [shard], "replicas": list(replicas)}, Console(file=out, width=80))
    return out.getvalue()


def test_on_one_host_nothing_is_cut_off_in_80_columns() -> None:
    text = shown(replica("ab12cd34", "node"), replica("ef56gh78", "node"))
    assert "…" not in text and "host" not in text
    for column in ("rank: pid", "state", "running", "waiting", "KV use", "steps", "0: 1234567", "serving", "75 %"):
        assert column in text


def test_on_several_hosts_each_replica_tells_its_own() -> None:
    text = shown(replica("ab12cd34", "10.0.0.1"), replica("ef56gh78", "10.0.0.2"))
    assert "host" in text and "10.0.0.1" in text and "10.0.0.2" in text


def test_a_replica_whose_ranks_were_or_are_replaced_says_so() -> None:
    rebuilt = {**replica("ab12cd34", "node"), "engine": {"num_blocks": 1024, "num_rebuilds": 2}}
    away = {**replica("ef56gh78", "node"), "is_draining": True, "comes_back": True}
    leaving = {**replica("ij90kl12", "node"), "is_draining": True}
    text = shown(rebuilt, away, leaving)
    assert "…" not in text
    for word in ("rebuilt", "2x", "rebuild ", "drains"):
        assert word in text


def test_ranks_on_several_hosts_tell_which() -> None:
    spread = {**replica("ab12cd34", "10.0.0.1"), "pids": [11, 12, 21, 22]}
    text = shown({**spread, "rank_hosts": ["10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2"]})
    assert "0: 11, 1: 12 on 10.0.0.1" in text and "2: 21, 3: 22 on 10.0.0.2" in text
    assert "on 10.0.0.1" not in shown({**spread, "rank_hosts": ["10.0.0.1"] * 4})
