"""The real command with the demo model: what a client, a Python program and an operator see."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.config import GatewayConfig
from cluster.health.board import PATHS
from cluster.metrics.declared import GATEWAYS, STARTUP_TIME, STEPS
from tests.deployments.test_metrics import promtool_says
from tests.e2e.live_server import LiveServer, start

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def manta(server: LiveServer, *args: str) -> str:
    """Run a subcommand against the server's cluster."""
    command = [sys.executable, "-m", "deployments.cli", *args]
    environment = {**os.environ, "RAY_ADDRESS": server.ray_address}
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=environment).stdout


def status(server: LiveServer) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(manta(server, "status", "--json", "--address", server.ray_address))
    return answer


def test_the_greeting_holds_a_curl_line_that_works(live_server: LiveServer) -> None:
    line = next(line for line in live_server.log.read_text().splitlines() if line.startswith("curl "))
    answer = subprocess.run(line, shell=True, check=True, capture_output=True, timeout=60)
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"]


def test_the_start_shows_its_phases(live_server: LiveServer) -> None:
    text = live_server.log.read_text()
    for phase in ("load took", "warm_up took", "replica 1", "replica 2"):
        assert phase in text


def test_every_process_is_healthy_and_on_the_metrics_page(live_server: LiveServer) -> None:
    port = httpx.URL(live_server.url).port
    assert port is not None
    health_port = GatewayConfig(port=port).health_listener_port
    for path in PATHS:
        for url in (live_server.url, f"http://127.0.0.1:{health_port}"):
            answer = httpx.get(url + path, timeout=10.0)
            assert (answer.status_code, answer.json()) == (200, {"status": "ok", "why": []})
    page = httpx.get(f"{live_server.url}/metrics", timeout=10.0).text
    assert promtool_says(page) == ""
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    assert len({sample.labels["replica"] for sample in samples if sample.name == STEPS.name}) == 2
    assert {sample.labels["shard"] for sample in samples if sample.name == GATEWAYS.name} == {"0", "1"}
    phases = {sample.labels["phase"] for sample in samples if sample.name == STARTUP_TIME.name}
    assert {"load", "warm_up"} <= phases


def test_an_openai_client_streams(live_server: LiveServer) -> None:
    client = openai.OpenAI(base_url=f"{live_server.url}/v1", api_key="none")
    stream = client.chat.completions.create(
        model=live_server.model,
        messages=[{"role": "user", "content": "Tell me about the sea."}],
        stream=True,
        stream_options={"include_usage": True},
        seed=3,
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "sea" in text.lower()
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 5


def test_a_seed_gives_the_same_text_alone_and_in_company(live_server: LiveServer) -> None:
    client = openai.OpenAI(base_url=f"{live_server.url}/v1", api_key="none")

    def answers(n: int) -> list[str]:
        done = client.completions.create(
            model=live_server.model, prompt="The old lighthouse", max_tokens=24, temperature=0.8, seed=11, n=n
        )
        return [choice.text for choice in done.choices]

    [alone] = answers(1)
    assert answers(8)[0] == alone


def test_both_replicas_work_and_the_status_knows(live_server: LiveServer) -> None:
    body = {"model": live_server.model, "prompt": "Once upon a time", "max_tokens": 32, "ignore_eos": True}
    with httpx.Client(timeout=60.0) as client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.post(f"{live_server.url}/v1/completions", json=body), range(32)))
    assert [answer.status_code for answer in answers] == [200] * 32
    replicas = status(live_server)["replicas"]
    assert len(replicas) == 2
    assert all(replica["load"]["num_output_tokens"] > 0 for replica in replicas)
    assert all(replica["load"]["num_running"] == 0 for replica in replicas)
    assert all(Path(f"/proc/{pid}").exists() for replica in replicas for pid in replica["pids"])
    table = manta(live_server, "status", "--address", live_server.ray_address)
    assert all(replica["replica_id"] in table for replica in replicas)


def test_a_client_that_leaves_frees_the_engine(live_server: LiveServer) -> None:
    body = {
        "model": live_server.model, "prompt": "x", "max_tokens": 900, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    with httpx.stream("POST", f"{live_server.url}/v1/completions", json=body, timeout=30.0) as answer:
        next(answer.iter_lines())
    until = time.monotonic() + 10
    while any(replica["load"]["num_running"] for replica in status(live_server)["replicas"]):
        assert time.monotonic() < until, "the request still runs"


HANDLE_PROGRAM = """
import ray
from ray import serve

ray.init(address="auto", log_to_driver=False)
manta = serve.get_app_handle("manta")
done = manta.generate.remote("The sea is", max_tokens=8, seed=1).result()
streaming = manta.options(stream=True)
pieces = list(streaming.stream.remote("The sea is", max_tokens=8, seed=1))
assert done["choices"][0]["text"] == "".join(piece["choices"][0]["text"] for piece in pieces), (done, pieces)
hello = [{"role": "user", "content": "Hello"}]
assert manta.chat.remote(hello, max_tokens=20).result()["choices"][0]["message"]["content"]
assert list(streaming.chat_stream.remote(hello, max_tokens=20))[-1]["choices"][0]["finish_reason"]
"""


def test_a_handle_from_inside_the_cluster(live_server: LiveServer) -> None:
    """In a process of its own: Ray reads how to join a cluster on loopback while it is imported."""
    program = """
import ray
from ray import serve

ray.init(address="auto", namespace="manta", log_to_driver=False)
handle = serve.get_app_handle("manta")
done = handle.generate.remote("The sea is", max_tokens=8, seed=1).result(timeout_s=30)
assert done["choices"][0]["text"]
pieces = list(handle.options(stream=True).stream.remote("The sea is", max_tokens=8, seed=1))
assert "".join(piece["choices"][0]["text"] for piece in pieces) == done["choices"][0]["text"]
answer = handle.chat.remote([{"role": "user", "content": "Hello"}], max_tokens=20).result(timeout_s=30)
assert answer["choices"][0]["message"]["content"]
print("well")
"""
    joining = {
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_ADDRESS": live_server.ray_address,
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=90, env={**os.environ, **joining}, check=False
    )
    assert done.stdout == "well\n", done.stderr


def test_manta_bench_reports_a_served_load(live_server: LiveServer) -> None:
    out = manta(live_server, "bench", "--url", live_server.url, "--requests", "8", "--output-tokens", "8", "--json")
    report = json.loads(out)
    assert report["failed"] == 0 and report["requests"] == 8 and report["ttft_ms"]["p50"] > 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("/nowhere/model",), "nowhere"),
        (("--set", "gateway.prot=1"), "did you mean 'port'"),
        (("--replicas", "0"), "replicas"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(args: tuple[str, ...], words: str, tmp_path: Path) -> None:
    process = start(tmp_path / "log", *args)
    assert process.wait(120) == 2
    text = (tmp_path / "log").read_text()
    assert words in text and "Traceback" not in text
