"""The metrics page over real sockets: all processes on it, true numbers, and nothing that goes backwards."""

import asyncio
import shutil
import subprocess
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import declared
from cluster.metrics.declared import DECLARED, Metric
from tests.cluster.gateway_world import client, live_server
from tests.deployments.gateways_world import gateways
from tests.deployments.serving_world import serving_world, until

BODY: dict[str, Any] = {"model": "m", "prompt": [11, 12, 13], "max_tokens": 10, "ignore_eos": True}


class Page:
    """A scrape, read by Prometheus's own parser."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def total(self, metric: Metric | str, **labels: str) -> float:
        """Over all series with these labels."""
        name = metric if isinstance(metric, str) else metric.name
        return sum(
            value for (found, own), value in self.samples.items() if found == name and labels.items() <= set(own)
        )

    def values(self, metric: Metric, label: str) -> set[str]:
        return {dict(own)[label] for name, own in self.samples if name.removesuffix("_count") == metric.name}


async def scrape(http: httpx.AsyncClient) -> Page:
    answer = await http.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Page(answer.text)


async def test_any_gateway_tells_of_all_processes() -> None:
    async with (
        serving_world(num_replicas=2, num_shards=2) as world,
        gateways(world) as (a, b),
        client(a.app) as one,
        client(b.app) as other,
    ):
        answers = await asyncio.gather(*(one.post("/v1/completions", json=BODY) for _ in range(6)))
        assert {answer.status_code for answer in answers} == {200}
        assert (await one.post("/v1/completions", json=BODY | {"n": 0})).status_code == 400
        b.metrics.scrapes.on_tick(1e9)
        a.metrics.scrapes.on_tick(1e9)
        page = await scrape(other)
        assert page.total(declared.CALLS, gateway="a", model="m", tenant="default", outcome="ok") == 6
        assert page.total(declared.ERROR_ANSWERS, gateway="a", code="invalid_value") == 1
        assert page.total(declared.OUTPUT_TOKENS) == 60
        assert page.total(declared.PROMPT_TOKENS) == 18
        assert page.total(declared.GRANTS) == 6
        assert page.values(declared.STEPS, "replica") == {"r0", "r1"}
        assert page.values(declared.GATEWAYS, "shard") == {"0", "1"}
        assert page.values(declared.LIVE_SHARDS, "gateway") >= {"a", "b"}
        for phase in (
            declared.GATEWAY_TIME, declared.QUEUE_TIME, declared.ROUTE_TIME, declared.PREFILL_TIME,
            declared.FIRST_TOKEN_TIME, declared.CALL_TIME,
        ):  # fmt: skip
            assert page.total(f"{phase.name}_count") == 6, phase.name
        assert page.total(f"{declared.TOKEN_GAP.name}_count") == 6 * 9
        parts = (declared.GATEWAY_TIME, declared.QUEUE_TIME, declared.ROUTE_TIME, declared.PREFILL_TIME)
        whole = page.total(f"{declared.FIRST_TOKEN_TIME.name}_sum")
        assert whole == pytest.approx(sum(page.total(f"{part.name}_sum") for part in parts), rel=0.01)


async def test_what_the_dead_have_counted_is_not_taken_back() -> None:
    async with (
        serving_world(num_replicas=2) as world,
        gateways(world) as (a, b),
        client(a.app) as one,
        client(b.app) as other,
    ):
        await asyncio.gather(*(one.post("/v1/completions", json=BODY) for _ in range(4)))
        await until(lambda: sum(r.load.num_output_tokens for r in world.shard.router.replicas() if r.load) == 40)
        a.metrics.scrapes.on_tick(1e9)
        before = await scrape(other)
        a.links.close()
        world.replicas[0].links.close()
        await until(lambda: len(world.shard.router.replicas()) == 1 and "a" not in world.shard.gateways)
        after = await scrape(other)
    for metric in DECLARED:
        if metric.kind is declared.Kind.COUNTER:
            assert after.total(metric) >= before.total(metric), metric.name
    assert after.total(declared.CALLS, gateway="a", outcome="ok") == 4
    assert "r0" in after.values(declared.STEPS, "replica")
    assert after.values(declared.KV_USED, "replica") == {"r1"}, "a dead replica uses nothing"


async def test_a_silent_shard_is_not_waited_for_long_and_does_not_hide_the_others() -> None:
    async with serving_world(num_shards=2) as world, gateways(world) as (a, _b):
        for connection in world.shards[1]._server.connections:
            assert connection._transport is not None
            connection._transport.pause_reading()
        async with client(a.app) as http:
            page = await scrape(http)
        assert page.values(declared.GATEWAYS, "shard") == {"0"}
        assert page.values(declared.STEPS, "replica") == {"r0"}


async def test_scrapes_at_once_ask_the_shards_once_and_streams_go_on_meanwhile() -> None:
    async with (
        serving_world(step_delay_s=0.001) as world,
        gateways(world) as (a, _b),
        live_server(a.app) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        stream = asyncio.create_task(http.post("/v1/completions", json=BODY | {"max_tokens": 200}))
        await until(lambda: world.num_running() == 1)
        pages = await asyncio.gather(*(http.get("/metrics") for _ in range(20)))
        assert {page.status_code for page in pages} == {200}
        assert a.metrics.scrapes._ticket < 20
        assert (await stream).json()["usage"]["completion_tokens"] == 200


def promtool_says(page: str) -> str:
    """What `promtool check metrics` finds; nothing where there is no promtool (Debian: apt-get install prometheus)."""
    promtool = shutil.which("promtool")
    if promtool is None:
        return ""
    checked = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True)
    return checked.stdout + checked.stderr


async def test_the_page_passes_prometheus_own_check() -> None:
    async with serving_world(num_replicas=2) as world, gateways(world) as (a, _b), client(a.app) as http:
        await http.post("/v1/completions", json=BODY)
        page = await scrape(http)
    names = [line.split()[2] for line in page.text.splitlines() if line.startswith("# TYPE ")]
    assert names and len(names) == len(set(names)) and set(names) <= {metric.name for metric in DECLARED}
    assert promtool_says(page.text) == ""
