"""What the overload benchmark counts, and the headers that its client reads."""

from collections.abc import AsyncIterator
from typing import Any

from cluster.config import Edge
from cluster.errors import Overloaded
from deployments.commands.http_load import Timeline, streamed_completion
from scripts.bench_overload import SETTLE_S, goodput
from tests.cluster.gateway_world import MODEL, ScriptedGenerator, gateway, live_server


def test_goodput_counts_whole_answers_within_the_load() -> None:
    began = 100.0
    ended = (began + 1, began + SETTLE_S + 1, began + SETTLE_S + 2, began + 30)
    timelines = [Timeline(began, ended_at=at) for at in ended]
    timelines.append(Timeline(began, ended_at=began + SETTLE_S + 1, error="refused"))
    assert goodput(timelines, began, SETTLE_S + 10) == 0.2


async def test_a_refusal_tells_when_to_come_again_and_headers_arrive() -> None:
    async def full(request: Any) -> AsyncIterator[Any]:
        raise Overloaded("full", None, 7.0)
        yield

    generator = ScriptedGenerator(full)
    async with live_server(gateway(generator, tenant_header="X-Tenant", edge=Edge.DIRECT)) as url:
        body: dict[str, object] = {"model": MODEL, "prompt": "Hi", "max_tokens": 2}
        timeline = await streamed_completion(f"{url}/v1/completions", body, {"X-Tenant": "acme"})
    assert (timeline.status, timeline.retry_after_s) == (503, 7)
    assert generator.requests[0].cache_salt == "acme"
