"""Three hosts from `manta up` to `manta down`: an app on all of them, one without power under load, nothing lost.

MANTA_NETNS=/path/to/netns_hosts.sh .venv/bin/python -m pytest -m multihost -s tests/multihost
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.client import KEY_VARIABLE, ResumingStream, StreamLost
from deployments.commands.cluster_file import read_cluster_file
from engine.chain_startup import VOCAB_SIZE
from scripts.chaos_run.workload import chain_tokens
from tests.multihost.netns_cluster import ROOT, Hosts, netns_hosts, why_not

pytestmark = [
    pytest.mark.multihost,
    pytest.mark.timeout(480),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]
MANTA = f"{ROOT}/.venv/bin/manta"
DEPLOY = (
    "chain --replicas 3 --host 0.0.0.0 --set gateway.replicas=3 --set chain.step_s=0.02 --api-keys ~/manta_keys.json"
)
NUM_STREAMS, NUM_TOKENS = 24, 400
SILENCE_S = 5.0  #: a client that hears nothing for so long goes to another gateway


class Story:
    """Tells what happened when, on the terminal with -s."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def tell(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with netns_hosts(3) as made:
        yield made


def manta(*words: str) -> int:
    command = [sys.executable, "-m", "deployments.cli", *words]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
    return process.returncode


def on_head(file: Path, hosts: Hosts, words: str) -> str:
    command = read_cluster_file(str(file)).ssh(hosts.address(1), f"{MANTA} {words}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def urls_of(placed: Sequence[dict[str, Any]]) -> list[str]:
    return [f"http://{host['address']}:8000" for host in placed if host["is_alive"] and "gateway" in host["replicas"]]


async def read_stream(urls: Sequence[str], seed: int) -> tuple[list[int], list[int], int]:
    """What a client reads, on the next gateway when one is silent; what it must read; how often it moved."""
    prompt = [(seed * 37 + place) % VOCAB_SIZE for place in range(24)]
    body = {
        "model": "chain", "prompt": prompt, "max_tokens": NUM_TOKENS, "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    tokens: list[int] = []
    position = ""
    for moves, url in enumerate(urls):  # the first is given up at once; where the copies lie may have to start anew
        stream = ResumingStream(
            url, "/v1/completions", body, resume_s=30.0 if moves else 0.0, silence_s=SILENCE_S, last_event_id=position
        )
        try:
            async for event in stream:
                for choice in event["choices"]:
                    tokens += choice.get("token_ids") or []
        except StreamLost:
            position = stream.last_event_id
            continue
        return tokens, list(chain_tokens(prompt, NUM_TOKENS, VOCAB_SIZE)), moves
    return tokens, list(chain_tokens(prompt, NUM_TOKENS, VOCAB_SIZE)), -1


async def read_streams(urls: Sequence[str], during: Any = None) -> int:
    """All streams at once, dealt out over the gateways; how many went to another gateway. They must be exact."""
    starts = [[*urls[number % len(urls) :], *urls[: number % len(urls)]] for number in range(NUM_STREAMS)]
    reading = [asyncio.create_task(read_stream(start, number)) for number, start in enumerate(starts)]
    if during is not None:
        await asyncio.sleep(2.5)
        await asyncio.to_thread(during)
    results = await asyncio.gather(*reading)
    wrong = [number for number, (got, wanted, _) in enumerate(results) if got != wanted]
    assert wrong == [], [(number, len(results[number][0]), results[number][2]) for number in wrong]
    return sum(moves > 0 for _, _, moves in results)


def test_three_hosts_lose_one_and_no_stream(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, hosts.make_api_key())
    story, file = Story(), hosts.cluster_file()
    story.tell("three hosts")
    assert manta("up", str(file), "--manta", MANTA, "--timeout", "180", "--deploy", DEPLOY) == 0
    story.tell("manta up is done")

    placed = json.loads(on_head(file, hosts, "hosts --json"))
    urls = urls_of(placed)
    story.tell(f"placed: {[(host['address'], host['replicas']) for host in placed]}")
    assert len(json.loads(on_head(file, hosts, "status --json"))["replicas"]) == 3
    assert len({host["address"] for host in placed if "engine-chain" in host["replicas"]}) >= 2
    assert asyncio.run(read_streams(urls)) == 0
    story.tell(f"{NUM_STREAMS} streams over {len(urls)} gateways are exact")

    victim = next(number for number in (3, 2) if "engine-chain" in _on(placed, hosts.address(number)))
    moved = asyncio.run(read_streams(urls, lambda: hosts.tool("kill", str(victim))))
    story.tell(f"host {victim} has lost its power under load: {NUM_STREAMS} streams exact, {moved} of them resumed")

    hosts.tool("start", str(victim))
    on_head(file, hosts, "hosts --wait 3 --timeout 150")
    story.tell("the host has power again and has joined")
    placed = json.loads(on_head(file, hosts, "hosts --json"))
    story.tell(f"placed: {[(host['address'], host['is_alive'], host['replicas']) for host in placed]}")
    assert asyncio.run(read_streams(urls_of(placed))) == 0
    story.tell(f"{NUM_STREAMS} streams are exact")

    assert manta("up", str(file), "--manta", MANTA, "--no-restart") == 0
    after = json.loads(on_head(file, hosts, "hosts --json"))
    assert {host["node_id"] for host in after if host["is_alive"]} == {
        host["node_id"] for host in placed if host["is_alive"]
    }
    assert asyncio.run(read_streams(urls_of(after))) == 0
    story.tell("manta up --no-restart has left all as it was")

    assert manta("down", str(file)) == 0
    story.tell("manta down is done")
    for number in range(1, 4):
        left = hosts.tool("exec", str(number), "ps", "-eo", "args")
        assert "raylet" not in left and "gcs_server" not in left, f"host {number}: {left}"


def _on(placed: Sequence[dict[str, Any]], address: str) -> dict[str, int]:
    return next((dict(host["replicas"]) for host in placed if host["address"] == address and host["is_alive"]), {})
