"""A cluster that `manta up` has launched, as its user sees it: what runs where, and streams read from outside."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.client import ResumingStream, StreamLost
from deployments.commands.cluster_file import read_cluster_file
from tests.multihost.netns_cluster import ROOT, Hosts

MANTA = f"{ROOT}/.venv/bin/manta"
SILENCE_S = 5.0  #: a client that hears nothing for so long goes to another gateway
DURING_S = 2.5  #: after so long of streaming something happens


@dataclass
class LaunchedCluster:
    hosts: Hosts
    file: Path
    began: float = field(default_factory=time.monotonic)

    def tell(self, text: str) -> None:
        """What happened when, on the terminal with -s."""
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def manta(self, *words: str) -> int:
        """A command of the machine that launches; what it says is shown."""
        command = [sys.executable, "-m", "deployments.cli", *words]
        with subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
        ) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
        return process.returncode

    def up(self, *words: str) -> None:
        assert self.manta("up", str(self.file), "--manta", MANTA, "--timeout", "180", *words) == 0

    def deploy(self, words: str) -> None:
        """With a gateway on each host."""
        gateways = f"--host 0.0.0.0 --set gateway.replicas={self.hosts.num_hosts} --api-keys {self.hosts.keys}"
        self.up("--no-restart", "--deploy", f"{words} {gateways}")

    def on_head(self, words: str) -> str:
        """What a command of Manta says there."""
        command = read_cluster_file(str(self.file)).ssh(self.hosts.address(1), f"{MANTA} {words}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def placed(self) -> list[dict[str, Any]]:
        """`manta hosts`."""
        found: list[dict[str, Any]] = json.loads(self.on_head("hosts --json"))
        shown = [(host["address"], host["is_alive"], host["replicas"], host["ranks"]) for host in found]
        self.tell(f"placed: {shown}")
        return found

    def replicas(self) -> list[dict[str, Any]]:
        """`manta status`."""
        found: list[dict[str, Any]] = json.loads(self.on_head("status --json"))["replicas"]
        return found

    def wait_for_hosts(self) -> None:
        self.on_head(f"hosts --wait {self.hosts.num_hosts} --timeout 150")

    def rank_processes(self, without: int = 0) -> set[tuple[str, int]]:
        """Address of the host and process id; without spares, and without one host."""
        return {
            (self.hosts.address(number), int(line.split()[0]))
            for number in range(1, self.hosts.num_hosts + 1)
            if number != without
            for line in self.hosts.tool("exec", str(number), "ps", "-eo", "pid,args").splitlines()
            if line.endswith("-m engine.rank_process")
        }


def urls_of(placed: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of the gateways on hosts that are alive."""
    return [f"http://{host['address']}:8000" for host in placed if host["is_alive"] and "gateway" in host["replicas"]]


async def _read_stream(urls: Sequence[str], body: Mapping[str, Any]) -> tuple[list[int], int]:
    """What a client reads, on the next gateway when one is silent; how often it moved, -1 if it found none."""
    asked = {**body, "ignore_eos": True, "return_token_ids": True}
    tokens: list[int] = []
    position = ""
    for moves, url in enumerate(urls):  # the first is given up at once; where the copies lie may have to start anew
        stream = ResumingStream(
            url, "/v1/completions", asked, resume_s=30.0 if moves else 0.0, silence_s=SILENCE_S, last_event_id=position
        )
        try:
            async for event in stream:
                for choice in event["choices"]:
                    tokens += choice.get("token_ids") or []
        except StreamLost:
            position = stream.last_event_id
            continue
        return tokens, moves
    return tokens, -1


async def read_streams(
    urls: Sequence[str],
    bodies: Sequence[Mapping[str, Any]],
    expected: Sequence[Sequence[int]],
    during: Callable[[], object] | None = None,
) -> int:
    """All at once, dealt out over the gateways; how many went to another gateway. They must be exact."""
    starts = [[*urls[number % len(urls) :], *urls[: number % len(urls)]] for number in range(len(bodies))]
    reading = [asyncio.create_task(_read_stream(start, body)) for start, body in zip(starts, bodies, strict=True)]
    if during is not None:
        await asyncio.sleep(DURING_S)
        await asyncio.to_thread(during)
        assert not all(task.done() for task in reading), "too late: the streams are at their end"
    results = await asyncio.gather(*reading)
    wrong = [
        (number, len(got), moves)
        for number, ((got, moves), wanted) in enumerate(zip(results, expected, strict=True))
        if got != list(wanted)
    ]
    assert wrong == [], wrong
    return sum(moves > 0 for _, moves in results)
