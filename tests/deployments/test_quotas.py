"""Limits over real sockets: two gateways, a router shard that keeps the limits, replicas that count their tokens."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from cluster.api.handle_api import HandleApi
from cluster.config import Edge, GatewayConfig, MantaConfig, ModelConfig, RouterConfig
from cluster.errors import InvalidRequest, QuotaExceeded
from cluster.quotas.bucket import WINDOW_S
from cluster.quotas.config import QuotaConfig, TenantLimits
from tests.cluster.gateway_world import client, live_server
from tests.deployments.gateways_world import Gateway, model
from tests.deployments.serving_world import ServingWorld, serving_world, until
from tests.deployments.test_resuming import BODY, PROMPT

LIMIT = 1000
READY_S = 20.0
OF_ACME = {"x-tenant": "acme"}


class Limited(Gateway):
    """A gateway with limits."""

    def __init__(self, name: str, world: ServingWorld, quotas: QuotaConfig, num_gateways: int) -> None:
        settings = GatewayConfig(tenant_header="x-tenant", edge=Edge.DIRECT, replicas=num_gateways)
        models = (ModelConfig(name="m"),)
        config = MantaConfig(
            models=models, gateway=settings, router=RouterConfig(shards=len(world.shards)), quotas=quotas
        )
        super().__init__(name, world, config)
        self.links.on_tick.remove(self.health.on_tick)  # its probes are nobody's calls

    async def ready(self, world: ServingWorld) -> None:
        """Connected to all, and counted in by the book of each shard."""
        await until(lambda: len(self.links.connections) == len(world.replicas), READY_S)
        accounts = self.limits.accounts
        await until(lambda: all(account._number >= 2 and account._turn is None for account in accounts), READY_S)

    async def ask(self, max_tokens: int, **more: Any) -> httpx.Response:
        async with client(self.app) as http:
            body = {**BODY, "max_tokens": max_tokens, "stream": False, **more}
            del body["stream_options"]
            return await http.post("/v1/completions", json=body, headers=OF_ACME)


@asynccontextmanager
async def limited(
    quotas: QuotaConfig, num_gateways: int = 2, **engine: float
) -> AsyncIterator[tuple[ServingWorld, list[Limited]]]:
    async with serving_world(2, **engine) as world:
        gateways = [Limited(f"gateway{number}", world, quotas, num_gateways) for number in range(num_gateways)]
        try:
            for gateway in gateways:
                await gateway.ready(world)
            yield world, gateways
        finally:
            for gateway in gateways:
                gateway.links.close()


def tokens(limit: int = LIMIT, **more: Any) -> QuotaConfig:
    return QuotaConfig(tenants={"acme": TenantLimits(tokens_per_minute=limit, **more)})


def computed(world: ServingWorld) -> int:
    """Output tokens and prompt tokens, as the engines count them."""
    loads = [replica.core.scheduler.load() for replica in world.replicas]
    return sum(load.num_output_tokens + load.num_prompt_tokens for load in loads)


def left(headers: Mapping[str, str], kind: str = "tokens") -> int:
    return int(headers[f"x-ratelimit-remaining-{kind}"])


async def test_sixty_four_streams_at_two_gateways_use_no_more_than_the_limit() -> None:
    async with limited(tokens()) as (world, gateways):
        began = time.monotonic()
        answers = await asyncio.gather(*(gateways[n % 2].ask(100) for n in range(64)))
        statuses = [answer.status_code for answer in answers]
        most = LIMIT * (1.0 + (time.monotonic() - began) / WINDOW_S)
        assert computed(world) <= most
        assert 4 <= statuses.count(200) <= most // 103  # as long as each gateway is there, which takes its half along
        assert statuses.count(200) + statuses.count(429) == 64
    for answer in answers:
        assert answer.headers["x-ratelimit-limit-tokens"] == str(LIMIT)
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
            assert 1 <= int(answer.headers["retry-after"]) <= 37
            assert left(answer.headers) < 103


async def test_gateways_that_are_killed_under_load_exceed_nothing() -> None:
    async with limited(tokens(2000), step_delay_s=0.002) as (world, gateways):
        began, stop = time.monotonic(), False
        slots = list(gateways)

        async def load(slot: int) -> None:
            while not stop:
                try:
                    async with asyncio.timeout(3.0):
                        await slots[slot].ask(20 + 7 * slot)
                except TimeoutError:
                    pass  # its gateway was killed
                await asyncio.sleep(0.03)

        tasks = [asyncio.create_task(load(n % 2)) for n in range(24)]
        for kill in range(3):
            await asyncio.sleep(0.5)
            slots[kill % 2].links.close()
            slots[kill % 2] = Limited(f"another{kill}", world, tokens(2000), 2)
            gateways.append(slots[kill % 2])
            await slots[kill % 2].ready(world)
        await asyncio.sleep(0.5)
        stop = True
        await asyncio.gather(*tasks)
        elapsed_s = time.monotonic() - began
        assert 100 <= computed(world) <= 2000 * (1.0 + elapsed_s / WINDOW_S)


async def test_what_is_not_used_comes_back_however_it_ends() -> None:
    async with limited(tokens(), 1, step_delay_s=0.02) as (world, [gateway]):
        answer = await gateway.ask(5)
        assert left(answer.headers) == LIMIT - 8
        async with live_server(gateway.app) as url, httpx.AsyncClient() as http:
            body = {**BODY, "max_tokens": 900, "stream": True}
            async with http.stream("POST", f"{url}/v1/completions", json=body, headers=OF_ACME) as streamed:
                assert left(streamed.headers) <= LIMIT - 903
                async for _ in streamed.aiter_lines():
                    break
            await until(lambda: not world.num_running())
        answer = await gateway.ask(1)
        assert left(answer.headers) > 900  # a few tokens of the 900, and two prompts


@pytest.mark.parametrize("kind", ["requests", "tokens"])
async def test_what_does_not_fit_is_told_how_long_to_wait(kind: str) -> None:
    limits = TenantLimits(requests_per_minute=3) if kind == "requests" else TenantLimits(tokens_per_minute=12)
    async with limited(QuotaConfig(default=limits), 1) as (_, [gateway]):
        answers = [await gateway.ask(1) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200] * 3 + [429]
        refused = answers[-1]
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert left(refused.headers, kind) < (1 if kind == "requests" else 4)
        assert refused.headers[f"x-ratelimit-reset-{kind}"] in ("1m0s", *(f"{second}s" for second in range(20, 60)))


async def test_a_request_over_the_limit_is_not_told_to_wait() -> None:
    async with limited(tokens(50), 1) as (_, [gateway]):
        answer = await gateway.ask(48)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_too_large")
        assert "retry-after" not in answer.headers
        assert (await gateway.ask(47)).status_code == 200


async def test_a_chat_that_does_not_say_how_long_fits_into_a_limit_below_the_context() -> None:
    async with limited(tokens(400), 1) as (_, [gateway]), client(gateway.app) as http:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True}
        answer = await http.post("/v1/chat/completions", json=body, headers=OF_ACME)
        assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 100)
        answer = await http.post("/v1/chat/completions", json={**body, "n": 2}, headers=OF_ACME)
        assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 2 * 50)


async def test_a_model_has_limits_of_its_own_and_other_tenants_have_theirs() -> None:
    quotas = tokens(models={"m": TenantLimits(requests_per_minute=1)})
    async with limited(quotas, 1) as (_, [gateway]):
        assert [(await gateway.ask(1)).status_code for _ in range(2)] == [200, 429]
        async with client(gateway.app) as http:
            other = await http.post("/v1/completions", json={"model": "m", "prompt": PROMPT})
        assert other.status_code == 200
        assert "x-ratelimit-limit-requests" not in other.headers


async def test_a_migrated_request_is_charged_once() -> None:
    async with limited(tokens(), 1, step_delay_s=0.005) as (world, [gateway]):
        began, asked = time.monotonic(), asyncio.create_task(gateway.ask(100))
        await until(lambda: any(record.num_output_tokens for record in gateway.calls.running))
        [record] = gateway.calls.running
        [running] = [replica for replica in world.replicas if replica.name == record.attempts[0].replica_id]
        running.break_engine("it fails")
        assert (await asked).json()["usage"]["completion_tokens"] == 100
        answer = await gateway.ask(1)
        used = LIMIT - left(answer.headers)
        assert 107 - (time.monotonic() - began) * LIMIT / WINDOW_S - 1 <= used <= 107


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_stream_resumed_at_once_elsewhere_pays_for_what_is_still_to_come_and_not_for_its_prompt(
    leaves: bool,
) -> None:
    body = {**BODY, "max_tokens": 600, "stream": True}
    async with (
        limited(tokens(), 2, step_delay_s=0.002) as (_, [one, other]),
        live_server(one.app) as url,
        httpx.AsyncClient(headers={**OF_ACME, "accept": "text/event-stream"}) as http,
    ):
        async with http.stream("POST", f"{url}/v1/completions", json=body) as streamed, client(other.app) as second:
            assert left(streamed.headers) == LIMIT - 603
            stream = await anext(
                json.loads(line[6:])["id"] async for line in streamed.aiter_lines() if line[:6] == "data: "
            )
            if leaves:
                await streamed.aclose()
            resumed = await second.get(f"/v1/streams/{stream}", headers=OF_ACME)
        [*_, last, done] = [line[6:] for line in resumed.text.splitlines() if line[:6] == "data: "]
        assert (done, json.loads(last)["usage"]["completion_tokens"]) == ("[DONE]", 600)
        assert LIMIT - left((await other.ask(1)).headers) <= 603 + 4


async def test_a_stream_that_never_left_the_queue_pays_all_when_it_is_resumed() -> None:
    limits = TenantLimits(requests_per_minute=1, tokens_per_minute=LIMIT)
    async with (
        limited(QuotaConfig(tenants={"acme": limits}), 2, step_delay_s=0.01, max_num_seqs=1) as (_, [one, other]),
        live_server(one.app) as url,
        httpx.AsyncClient(headers={"accept": "text/event-stream"}) as http,
    ):
        body = {**BODY, "max_tokens": 1900, "stream": True}
        crowd = [asyncio.create_task(http.post(f"{url}/v1/completions", json=body)) for _ in range(2)]
        await until(lambda: sum(bool(call.attempts) for call in one.calls.running) == 2)
        short = {**body, "max_tokens": 20}
        queued = asyncio.create_task(http.post(f"{url}/v1/completions", json=short, headers=OF_ACME))
        await until(lambda: any(call.tenant == "acme" for call in one.calls.running))
        [record] = [call for call in one.calls.running if call.tenant == "acme"]
        queued.cancel()
        await until(lambda: record not in one.calls.running)
        assert not record.attempts
        for task in crowd:
            task.cancel()
        async with client(other.app) as second:
            resumed = await second.get(f"/v1/streams/{record.call_id}", headers=OF_ACME)
        assert resumed.text.endswith("data: [DONE]\n\n")
        assert left(resumed.headers, "requests") == 0
        assert left(resumed.headers) <= LIMIT - 23
        assert (await other.ask(1)).status_code == 429


async def test_the_handle_is_limited_too() -> None:
    async with limited(tokens(20), 1) as (_, [gateway]):
        api = HandleApi({"m": model()}, gateway.dispatcher, GatewayConfig(), gateway.calls)
        await api.generate(prompt_token_ids=PROMPT, max_tokens=15, tenant="acme")
        with pytest.raises(QuotaExceeded) as refused:
            await api.generate(prompt_token_ids=PROMPT, max_tokens=15, tenant="acme")
        assert 0.0 < (refused.value.retry_after_s or 0.0) <= 60.0
        with pytest.raises(InvalidRequest, match="`tenant` must be"):
            await api.generate(prompt_token_ids=PROMPT, tenant="acme/m")


async def test_a_lost_shard_opens_nothing() -> None:
    async with limited(tokens(), 1) as (world, [gateway]):
        assert (await gateway.ask(500)).status_code == 200
        await world.restart_router()
        await until(lambda: len(world.shard.replicas) == 2)
        refused = await gateway.ask(500)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 31
