"""The console's page, and the live fleet that it shows."""

import asyncio
import json
from typing import Any

import httpx
from starlette.types import Scope

from cluster.auth.principal import Principal
from cluster.config import GatewayConfig
from cluster.console import fleet_feed
from cluster.errors import Unauthorized
from cluster.gateway.app import build_gateway
from tests.cluster.gateway_world import client, live_server
from tests.deployments.gateways_world import gateways, model
from tests.deployments.serving_world import serving_world


async def views(http: httpx.AsyncClient, number: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with http.stream("GET", "/console/fleet", headers={"accept": "text/event-stream"}) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                found.append(json.loads(line.removeprefix("data: ")))
            if len(found) == number:
                break
    return found


async def test_all_who_look_see_the_same_fleet_and_what_it_does(monkeypatch: Any) -> None:
    monkeypatch.setattr(fleet_feed, "PERIOD_S", 0.05)
    async with (
        serving_world(num_replicas=2, num_shards=2) as world,
        gateways(world) as (here, _),
        live_server(here.app) as address,
        httpx.AsyncClient(base_url=address) as http,
    ):
        looking = [asyncio.create_task(views(http, 12)) for _ in range(2)]
        await views(http, 2)
        await http.post("/v1/completions", json={"model": "m", "prompt": "Hi", "max_tokens": 40})
        first, second = await asyncio.gather(*looking)
        await asyncio.sleep(0.2)  # nobody looks any more
        late = (await views(http, 1))[0]
    assert {view["at"] for view in first} & {view["at"] for view in second}
    assert late == first[0]  # who comes later is shown what was before
    last = first[-1]
    assert [replica["replica"] for replica in last["replicas"]] == ["r0", "r1"]
    assert all(replica["kv_capacity"] > 0 for replica in last["replicas"])
    assert [shard["shard"] for shard in last["shards"]] == ["0", "1"]
    assert [found["model"] for found in last["models"]] == ["m"]
    assert max(view["models"][0]["tokens_per_s"] for view in first) > 0
    assert last["models"][0]["first_token_p99"] > 0


async def test_anybody_may_have_the_page_and_only_administrators_the_fleet() -> None:
    async def identify(scope: Scope) -> Principal:
        names = dict(scope["headers"])
        if b"authorization" not in names:
            raise Unauthorized
        return Principal(is_admin=names[b"authorization"] == b"Bearer admin")

    async with serving_world() as world, gateways(world) as (here, _):
        app = build_gateway({"m": model()}, here.dispatcher, GatewayConfig(), identify, metrics=here.metrics)
        async with client(app) as http:
            for path, media_type in (("/console", "text/html"), ("/console/console.js", "text/javascript")):
                answer = await http.get(path)
                assert answer.status_code == 200
                assert answer.headers["content-type"].startswith(media_type)
                assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert (await http.get("/console/fleet")).status_code == 401
            assert (await http.get("/console/fleet", headers={"authorization": "Bearer user"})).status_code == 403
