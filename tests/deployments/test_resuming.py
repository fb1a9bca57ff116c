"""Streams that pass from gateway to gateway over real sockets: router shard, replicas, HTTP, and the client's side."""

from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from cluster.client import ResumingStream
from cluster.gateway.http_listener import ABORT
from tests.cluster.gateway_world import live_server
from tests.deployments.gateways_world import Gateway, gateways
from tests.deployments.serving_world import chain, serving_world, until

PROMPT = [11, 12, 13]
LENGTH = 60
BODY: dict[str, Any] = {
    "model": "m", "prompt": PROMPT, "max_tokens": LENGTH, "ignore_eos": True, "return_token_ids": True, "seed": 1,
    "stream_options": {"include_usage": True},
}  # fmt: skip


class Reader:
    """Collects a stream's tokens."""

    def __init__(self, url: str, last_event_id: str = "", **more: Any) -> None:
        self.stream = ResumingStream(url, "/v1/completions", BODY | more, last_event_id=last_event_id)
        self._events = self.stream.__aiter__()
        self.tokens: list[int] = []
        self.usage: Any = None

    async def take(self, count: int = 1000) -> list[int]:
        """Until there are so many, or the stream ends."""
        while len(self.tokens) < count:
            event = await anext(self._events, None)
            if event is None:
                break
            for choice in event["choices"]:
                self.tokens += choice["token_ids"]
            self.usage = event["usage"] or self.usage
        return self.tokens

    async def leave(self) -> None:
        await self._events.aclose()


class Switch:
    """One address for two gateways, as SO_REUSEPORT or a load balancer gives them."""

    def __init__(self, first: Gateway) -> None:
        self._present = first
        self._aborts: list[Callable[[], None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._aborts.append(scope["extensions"][ABORT])
        await self._present.app(scope, receive, send)

    def turn_to(self, gateway: Gateway) -> None:
        """The one before is gone with all its connections."""
        before, self._present = self._present, gateway
        before.links.close()
        for abort in self._aborts:
            abort()


async def test_a_gateway_that_loses_everything() -> None:
    async with serving_world(2, step_delay_s=0.002) as world, gateways(world) as (first, second):
        switch = Switch(first)
        async with live_server(switch) as url:
            reader = Reader(url)
            await reader.take(5)
            switch.turn_to(second)
            assert await reader.take() == chain(PROMPT, LENGTH)
        assert reader.stream.num_resumed == 1
        assert reader.usage["completion_tokens"] == LENGTH
        await until(lambda: world.num_running() == 0)


async def test_after_its_shard_has_lost_everything() -> None:
    async with serving_world(2, step_delay_s=0.005) as world, gateways(world) as (first, second):
        switch = Switch(first)
        async with live_server(switch) as url:
            reader = Reader(url, max_tokens=1900)
            await reader.take(5)
            await world.restart_router()
            await until(lambda: len(world.shard.streams) == 1)
            had = len(reader.tokens)
            switch.turn_to(second)
            await reader.take(had + 50)
            assert reader.tokens == chain(PROMPT, len(reader.tokens))
            assert reader.stream.num_resumed == 1
            await reader.leave()
        await until(lambda: world.num_running() == 0)


async def test_who_resumes_ends_the_attempt_that_runs_elsewhere() -> None:
    async with serving_world(2, step_delay_s=0.002) as world, gateways(world) as (first, second):
        async with live_server(first.app) as one, live_server(second.app) as other:
            reader = Reader(one, max_tokens=400)
            await reader.take(5)
            taker = Reader(other, reader.stream.last_event_id)  # whose body counts for nothing
            await taker.take(1)
            await until(lambda: first.dispatcher.num_in_flight == 0)
            await until(lambda: world.num_running() <= 1)
            assert reader.tokens + await taker.take() == chain(PROMPT, 400)
            assert taker.stream.num_resumed == 1
        await until(lambda: world.num_running() == 0)
