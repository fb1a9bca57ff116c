"""Three hosts with an app on all of them, one without power under load: nothing lost.

MANTA_NETNS=/path/to/netns_hosts.sh .venv/bin/python -m pytest -m multihost -s tests/multihost
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from engine.chain_startup import VOCAB_SIZE
from scripts.chaos_run.workload import chain_tokens
from tests.multihost.launched_cluster import LaunchedCluster, read_streams, urls_of
from tests.multihost.netns_cluster import why_not

pytestmark = [
    pytest.mark.multihost,
    pytest.mark.timeout(480),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]
DEPLOY = "chain --replicas 3 --set chain.step_s=0.02"
NUM_STREAMS, NUM_TOKENS = 24, 400
PROMPTS = [[(number * 37 + place) % VOCAB_SIZE for place in range(24)] for number in range(NUM_STREAMS)]
BODIES = [{"model": "chain", "prompt": prompt, "max_tokens": NUM_TOKENS} for prompt in PROMPTS]
EXPECTED = [list(chain_tokens(prompt, NUM_TOKENS, VOCAB_SIZE)) for prompt in PROMPTS]


def test_three_hosts_lose_one_and_no_stream(launched: LaunchedCluster) -> None:
    hosts = launched.hosts
    launched.deploy(DEPLOY)
    launched.tell("the chain engine answers")
    placed = launched.placed()
    urls = urls_of(placed)
    assert len(launched.replicas()) == 3
    assert len({host["address"] for host in placed if "engine-chain" in host["replicas"]}) >= 2
    assert asyncio.run(read_streams(urls, BODIES, EXPECTED)) == 0
    launched.tell(f"{NUM_STREAMS} streams over {len(urls)} gateways are exact")

    victim = next(number for number in (3, 2) if "engine-chain" in _on(placed, hosts.address(number)))
    moved = asyncio.run(read_streams(urls, BODIES, EXPECTED, lambda: hosts.tool("kill", str(victim))))
    launched.tell(f"host {victim} has lost its power under load: {NUM_STREAMS} streams exact, {moved} of them resumed")

    hosts.tool("start", str(victim))
    launched.wait_for_hosts()
    launched.tell("the host has power again and has joined")
    placed = launched.placed()
    assert asyncio.run(read_streams(urls_of(placed), BODIES, EXPECTED)) == 0
    launched.tell(f"{NUM_STREAMS} streams are exact")

    launched.up("--no-restart")
    after = launched.placed()
    assert _alive(after) == _alive(placed)
    assert asyncio.run(read_streams(urls_of(after), BODIES, EXPECTED)) == 0
    launched.tell("manta up --no-restart has left all as it was")


def _alive(placed: Sequence[dict[str, Any]]) -> set[str]:
    return {host["node_id"] for host in placed if host["is_alive"]}


def _on(placed: Sequence[dict[str, Any]], address: str) -> dict[str, int]:
    return next((dict(host["replicas"]) for host in placed if host["address"] == address and host["is_alive"]), {})
