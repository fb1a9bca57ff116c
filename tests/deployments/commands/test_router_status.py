"""Several shards' accounts make one."""

from typing import Any

from deployments.commands.router_status import merge_status


def shard(number: int, **replicas: float) -> dict[str, Any]:
    """A shard's account; a replica is an id and the age of its report."""
    return {
        "shard": number,
        "granted": 2,
        "refused": 1,
        "gateways": ["g1"],
        "starting": {f"s{number}": {"load": 0.0}},
        "replicas": [{"replica_id": name, "report_age_s": age} for name, age in replicas.items()],
    }


def test_replicas_say_which_shard_they_are_at() -> None:
    status = merge_status([shard(1, b=0.1), shard(0, c=0.1, a=0.1)])
    assert [(replica["replica_id"], replica["shard"]) for replica in status["replicas"]] == [
        ("a", 0),
        ("b", 1),
        ("c", 0),
    ]
    assert [known["shard"] for known in status["shards"]] == [0, 1]
    assert (status["granted"], status["refused"], status["gateways"]) == (4, 2, ["g1"])
    assert set(status["starting"]) == {"s0", "s1"}


def test_a_replica_that_two_shards_have_is_where_it_reports() -> None:
    status = merge_status([shard(0, a=5.0), shard(1, a=0.1)])
    assert [replica["shard"] for replica in status["replicas"]] == [1]
