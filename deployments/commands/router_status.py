"""What the router shards say of themselves, put together: one account of the app for `manta status` and its like."""

from collections.abc import Iterable, Mapping
from typing import Any


def merge_status(statuses: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """`shards` as they are, less their replicas; the replicas of all, each with its `shard`; who is starting."""
    shards: list[dict[str, Any]] = []
    replicas: dict[str, dict[str, Any]] = {}
    starting: dict[str, dict[str, float]] = {}
    for status in sorted(statuses, key=lambda status: int(status["shard"])):
        shards.append({key: value for key, value in status.items() if key not in ("replicas", "starting")})
        starting |= status["starting"]
        for replica in status["replicas"]:
            known = replicas.get(replica["replica_id"])
            if known is None or replica["report_age_s"] < known["report_age_s"]:
                replicas[replica["replica_id"]] = {**replica, "shard": status["shard"]}
    gateways = sorted({gateway for shard in shards for gateway in shard["gateways"]})
    return {
        "granted": sum(shard["granted"] for shard in shards),
        "refused": sum(shard["refused"] for shard in shards),
        "gateways": gateways,
        "shards": shards,
        "replicas": sorted(replicas.values(), key=lambda replica: str(replica["replica_id"])),
        "starting": starting,
    }
