"""Two replicas of a model cut in two stages of two ranks, each stage on another of three hosts; a host is lost, then
the network of one: no stream is.

MANTA_NETNS=/path/to/netns_hosts.sh .venv/bin/python -m pytest -m multihost -s tests/multihost
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cluster.config import ModelConfig
from engine.config import DType, EngineConfig
from engine.startup import start_engine
from tests.engine.drive_engine import drive, request, tokens
from tests.multihost.launched_cluster import DURING_S, LaunchedCluster, read_streams, urls_of
from tests.multihost.netns_cluster import why_not

pytestmark = [
    pytest.mark.multihost,
    pytest.mark.timeout(480),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]
DEPLOY = (
    "demo --replicas 2 --set tensor_parallel=2 --set pipeline_parallel=2 "
    "--set engine.dtype=float32 --set engine.kv_cache_tokens=16384 --set rank_timeout_s=5"
)
NUM_REPLICAS, NUM_STREAMS, NUM_TOKENS = 2, 12, 400
PROMPTS = [[(number * 131 + place * 17) % 2000 for place in range(20)] for number in range(NUM_STREAMS)]
BODIES = [{"model": "demo", "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0} for prompt in PROMPTS]
RECOVERY_S = 150.0  #: twice what it takes on two busy cores, and more


def test_stages_on_several_hosts_lose_one_and_no_stream(launched: LaunchedCluster) -> None:
    hosts, expected = launched.hosts, _said_by_one_rank()
    launched.deploy(DEPLOY)
    launched.tell("the model of many ranks answers")
    urls = urls_of(launched.placed())
    replicas = _whole(launched)
    assert asyncio.run(read_streams(urls, BODIES, expected)) == 0
    launched.tell(f"{NUM_STREAMS} streams over {len(urls)} gateways say what one rank says")

    def lose(how: str, replicas: Sequence[dict[str, Any]]) -> tuple[int, list[dict[str, Any]]]:
        victim, urls = _host_of_one(launched, replicas), urls_of(launched.placed())
        began = time.monotonic() + DURING_S
        moved = asyncio.run(read_streams(urls, BODIES, expected, lambda: hosts.tool(how, str(victim))))
        launched.tell(f"{how} of host {victim} under load: {NUM_STREAMS} streams exact, {moved} of them resumed")
        _until(lambda: _serve_without(hosts.address(victim), launched.replicas()), "replicas are missing")
        launched.tell(f"all replicas serve again on the other hosts, {time.monotonic() - began:.0f} s after the loss")
        _until(lambda: not _stray_ranks(launched, victim), "ranks have outlived their replica")
        return victim, _whole(launched)

    victim, replicas = lose("kill", replicas)
    hosts.tool("start", str(victim))
    launched.wait_for_hosts()
    launched.tell("the host has power again and has joined")
    launched.on_head(f"drain {replicas[0]['replica_id']}")
    _until(lambda: _is_used(hosts.address(victim), launched.replicas()), "the host that has come back has no ranks")
    replicas = _whole(launched)
    assert asyncio.run(read_streams(urls_of(launched.placed()), BODIES, expected)) == 0
    launched.tell(f"one replica was drained and placed anew, also on that host; {NUM_STREAMS} streams are exact")

    victim, _ = lose("cut", replicas)
    hosts.tool("heal", str(victim))
    launched.wait_for_hosts()
    launched.tell("the host has its network again and has joined")
    _until(lambda: not _stray_ranks(launched), "ranks have outlived their replica")
    assert asyncio.run(read_streams(urls_of(launched.placed()), BODIES, expected)) == 0
    launched.tell(f"no stale rank anywhere; {NUM_STREAMS} streams are exact")


def _said_by_one_rank() -> list[list[int]]:
    config = EngineConfig(dtype=DType.FLOAT32, max_model_len=1024, max_num_seqs=NUM_STREAMS, kv_cache_tokens=16384)
    core, _ = start_engine(ModelConfig().location, config)
    asked = [(0, request(str(n), prompt, max_tokens=NUM_TOKENS)) for n, prompt in enumerate(PROMPTS)]
    chunks = drive(core, asked)
    return [tokens(chunks[str(number)]) for number in range(NUM_STREAMS)]


def _whole(launched: LaunchedCluster) -> list[dict[str, Any]]:
    """The replicas; each must have a host for each stage."""
    replicas = launched.replicas()
    for replica in replicas:
        first, also_first, second, also_second = replica["rank_hosts"]
        assert (first, second) == (also_first, also_second) and first != second
    launched.tell(f"ranks: {[(replica['replica_id'], replica['rank_hosts'][::2]) for replica in replicas]}")
    return replicas


def _stray_ranks(launched: LaunchedCluster, without: int = 0) -> set[tuple[str, int]]:
    """Rank processes of which no replica tells, by host and id; one host is not looked at."""
    replicas = launched.replicas()
    told = {at for replica in replicas for at in zip(replica["rank_hosts"], replica["pids"], strict=True)}
    return launched.rank_processes(without) - told


def _host_of_one(launched: LaunchedCluster, replicas: Sequence[dict[str, Any]]) -> int:
    """A worker on which one replica has a stage and the other none: so one outlives it."""
    for number in range(2, launched.hosts.num_hosts + 1):
        address = launched.hosts.address(number)
        if sum(address in replica["rank_hosts"] for replica in replicas) == 1:
            return number
    raise AssertionError([replica["rank_hosts"] for replica in replicas])


def _serve_without(address: str, replicas: Sequence[dict[str, Any]]) -> bool:
    return len(replicas) == NUM_REPLICAS and not any(address in replica["rank_hosts"] for replica in replicas)


def _is_used(address: str, replicas: Sequence[dict[str, Any]]) -> bool:
    return len(replicas) == NUM_REPLICAS and any(address in replica["rank_hosts"] for replica in replicas)


def _until(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + RECOVERY_S
    while not condition():
        assert time.monotonic() < until, f"{what}, after {RECOVERY_S:.0f} s"
        time.sleep(1.0)
