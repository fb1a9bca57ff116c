"""The client of streams that cannot be lost: connections cut anywhere, gateways in turn, servers that say no."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster import client
from cluster.client import ResumingStream, StreamFailed, StreamLost
from cluster.errors import EngineFailed
from cluster.gateway.http_listener import ABORT
from cluster.generation import RequestContext
from tests.cluster.gateway_world import MODEL, ScriptedGenerator, live_server
from tests.cluster.resume_world import Received, Shard, a_gateway, uneven_chain, whole_of

PATH = "/v1/completions"
BODY: dict[str, Any] = {"model": MODEL, "prompt": "東京は Hi", "max_tokens": 40, "seed": 3, "return_token_ids": True}


class Cutting:
    """Gateways that take turns; of each exchange so many bytes of the answer arrive, then the connection breaks."""

    def __init__(self, apps: Sequence[ASGIApp], num_bytes: Sequence[int]) -> None:
        self._apps, self._num_bytes = itertools.cycle(apps), iter(num_bytes)
        self.methods: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.methods.append(scope["method"])
        left = next(self._num_bytes, None)

        async def send_some(message: Message) -> None:
            nonlocal left
            if left is not None and message["type"] == "http.response.body":
                message["body"] = message["body"][:left]
                left -= len(message["body"])
            await send(message)
            if left == 0:
                await asyncio.sleep(0.01)  # lets what was sent arrive
                scope["extensions"][ABORT]()
                raise ConnectionResetError

        await next(self._apps)(scope, receive, send_some)


@asynccontextmanager
async def cutting(*num_bytes: int) -> AsyncIterator[tuple[str, Cutting]]:
    shard, generator = Shard(), uneven_chain()
    app = Cutting([a_gateway(name, generator, shard).app for name in "ab"], num_bytes)
    async with live_server(app) as url:
        yield url, app


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.0)


def whole(events: list[Any]) -> dict[str, Any]:
    """Of events, as a whole; without the head, in which every stream differs."""
    return whole_of([Received("", client.json.dumps(event)) for event in events]) | {"heads": 0}


async def test_every_token_once_however_often_it_breaks() -> None:
    async with cutting() as (url, app):
        unbroken = [event async for event in ResumingStream(url, PATH, BODY)]
        assert app.methods == ["POST"]
    async with cutting(0, 10, 700, 500, 61, 1000, 1, 900, 1900) as (url, app):
        stream = ResumingStream(url, PATH, BODY)
        events = [event async for event in stream]
        assert whole(events) == whole(unbroken)
        assert app.methods[:4] == ["POST", "POST", "POST", "GET"], "first there is nothing to go on with"
        assert stream.num_resumed == app.methods.count("GET") >= 6
        assert len({event["id"] for event in events}) == 1


async def test_without_asyncio() -> None:
    async with cutting() as (url, _):
        unbroken = [event async for event in ResumingStream(url, PATH, BODY)]
    async with cutting(10, 700, 700, 61, 1000) as (url, _):
        stream = ResumingStream(url, PATH, BODY)
        events = await asyncio.to_thread(lambda: list(stream))
        assert whole(events) == whole(unbroken)
        assert stream.num_resumed >= 3


async def test_an_error_event_is_raised_and_not_gone_on_with() -> None:
    async def script(request: Any) -> AsyncIterator[Any]:
        async for chunk in uneven_chain().stream(request, RequestContext(model=MODEL)):
            yield chunk
            raise EngineFailed("It broke.")

    gateway = a_gateway("a", ScriptedGenerator(script), Shard())
    async with live_server(gateway.app) as url:
        events = []
        with pytest.raises(StreamFailed, match="It broke") as failed:
            async for event in ResumingStream(url, PATH, BODY):
                events.append(event)
    assert events
    assert failed.value.body["error"]["code"] == "engine_failed"


@pytest.mark.parametrize(("field", "status"), [({"max_tokens": 0}, 400), ({"model": "other"}, 404)])
async def test_a_refusal_is_raised_at_once(field: dict[str, Any], status: int) -> None:
    async with cutting() as (url, app):
        with pytest.raises(StreamFailed) as failed:
            [event async for event in ResumingStream(url, PATH, BODY | field)]
        assert failed.value.status == status
        assert len(app.methods) == 1


async def test_a_stream_that_is_kept_no_longer_is_told() -> None:
    shard, generator = Shard(), uneven_chain()
    kept, forgetful = a_gateway("a", generator, shard), a_gateway("b", generator, Shard())
    async with live_server(Cutting([kept.app, forgetful.app], [400])) as url:
        with pytest.raises(StreamFailed, match="Send the request again") as failed:
            [event async for event in ResumingStream(url, PATH, BODY)]
    assert failed.value.status == 404


async def test_it_is_lost_when_its_time_is_over() -> None:
    async with cutting(*[600] + [0] * 100) as (url, app):
        with pytest.raises(StreamLost, match="connection was lost"):
            [event async for event in ResumingStream(url, PATH, BODY, resume_s=0.1)]
        assert "GET" in app.methods


async def test_without_ids_a_broken_stream_is_lost_and_never_begun_again() -> None:
    gateway = a_gateway("a", uneven_chain(), Shard(), resume_s=0)
    app = Cutting([gateway.app], [800])
    async with live_server(app) as url:
        with pytest.raises(StreamLost):
            [event async for event in ResumingStream(url, PATH, BODY)]
    assert app.methods == ["POST"]


async def test_no_server_is_told_at_once() -> None:
    with pytest.raises(StreamLost) as lost:
        [event async for event in ResumingStream("http://127.0.0.1:9", PATH, BODY)]
    assert isinstance(lost.value.__cause__, httpx.ConnectError)


def test_a_gateway_that_closes_is_a_break_with_notice() -> None:
    closing = b'data: {"error":{"message":"bye","code":"gateway_closing"}}\n\n'
    reading = client._Reading(PATH, BODY, {}, 60.0)
    first = list(reading.read(b'id: s:0\ndata: {"choices":[]}\n\n' + closing))
    assert (first, reading.is_done) == ([{"choices": []}], False)
    assert reading.pause(0.0) >= 0 and reading.request()["url"] == "/v1/streams/s"
    unbegun = client._Reading(PATH, BODY, {}, 60.0)
    with pytest.raises(StreamFailed, match="bye"):
        list(unbegun.read(closing))
