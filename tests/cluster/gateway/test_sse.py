"""Streams on the wire: the first token at once, writes without a timer, slow readers bounded, no false ends."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.types import Message

from cluster.api.stream_events import Event
from cluster.errors import EngineFailed
from cluster.gateway.sse import MAX_BUFFER_BYTES, ReaderStalled, encode_event, send_stream
from engine.request import FinishReason, GenerateRequest, TokenChunk
from tests.cluster.gateway_world import MODEL, ScriptedGenerator, gateway, live_server, local_generator, until

BODY = {"model": MODEL, "prompt": "Hi", "stream": True, "max_tokens": 1000}


class Socket:
    """The sending half of an ASGI server; blocks while `open` is unset."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, message: Message) -> None:
        if not self.open.is_set():
            await self.open.wait()
        self.messages.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.messages if message["type"] == "http.response.body"]


def event(number: int, size: int = 0) -> Event:
    return Event(b"r:%d" % number, b'{"n":%d%b}' % (number, b" " * size))


async def test_what_is_ready_goes_in_one_write_and_nothing_waits_for_more() -> None:
    release = asyncio.Event()

    async def events() -> AsyncGenerator[Event, None]:
        yield event(0)
        yield event(1)
        await release.wait()
        yield event(2)

    wire = Socket()
    sending = asyncio.create_task(send_stream(wire.send, events(), (), 5.0))
    await until(lambda: bool(wire.bodies))
    assert wire.bodies == [encode_event(event(0)) + encode_event(event(1))]
    release.set()
    await sending
    assert wire.bodies[1:] == [encode_event(event(2)) + b"data: [DONE]\n\n", b""]
    assert [message.get("more_body") for message in wire.messages] == [None, True, True, False]


async def test_a_failure_is_an_event_and_not_an_end() -> None:
    async def events() -> AsyncGenerator[Event, None]:
        yield event(0)
        raise EngineFailed("It broke.")

    wire = Socket()
    await send_stream(wire.send, events(), (), 5.0)
    text = b"".join(wire.bodies)
    assert b"[DONE]" not in text
    assert json.loads(text.split(b"data: ")[-1])["error"]["code"] == "engine_failed"


async def test_a_failure_before_the_first_event_leaves_the_answer_unbegun() -> None:
    async def events() -> AsyncGenerator[Event, None]:
        raise EngineFailed("It broke.")
        yield

    wire = Socket()
    with pytest.raises(EngineFailed):
        await send_stream(wire.send, events(), (), 5.0)
    assert wire.messages == []


async def test_a_slow_reader_costs_a_bounded_buffer() -> None:
    taken = 0

    async def events() -> AsyncGenerator[Event, None]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield event(number, 1000)

    wire = Socket()
    sending = asyncio.create_task(send_stream(wire.send, events(), (), 5.0))
    await until(lambda: bool(wire.bodies))
    wire.open.clear()
    seen = -1
    while seen != taken:
        seen = taken
        await asyncio.sleep(0.01)
    unsent = taken * 1000 - sum(map(len, wire.bodies))
    assert taken == 1000 or unsent <= 2 * MAX_BUFFER_BYTES
    wire.open.set()
    await sending
    assert b"".join(wire.bodies).count(b"id: r:") == 1000
    assert max(map(len, wire.bodies)) < MAX_BUFFER_BYTES + 2000


async def test_a_stalled_reader_is_cut_and_the_work_freed() -> None:
    closed = False

    async def events() -> AsyncGenerator[Event, None]:
        nonlocal closed
        try:
            while True:
                await asyncio.sleep(0)
                yield event(0)
        finally:
            await asyncio.sleep(0)  # freeing work may itself wait
            closed = True

    wire = Socket()
    sending = asyncio.create_task(send_stream(wire.send, events(), (), 0.05))
    await until(lambda: bool(wire.bodies))
    wire.open.clear()
    with pytest.raises(ReaderStalled):
        await sending
    assert closed
    assert b"[DONE]" not in b"".join(wire.bodies)


async def test_cancelling_while_a_write_blocks_frees_the_work() -> None:
    closed = False

    async def events() -> AsyncGenerator[Event, None]:
        nonlocal closed
        try:
            while True:
                await asyncio.sleep(0)
                yield event(0)
        finally:
            closed = True

    wire = Socket()
    sending = asyncio.create_task(send_stream(wire.send, events(), (), 5.0))
    await until(lambda: len(wire.bodies) > 3)
    wire.open.clear()
    await asyncio.sleep(0.01)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert closed


async def test_many_waits_within_one_event_do_not_pile_up() -> None:
    async def events() -> AsyncGenerator[Event, None]:
        yield event(0)
        for _ in range(5000):  # tokens without text: the next event is long in coming
            await asyncio.sleep(0)
        yield event(1)

    wire = Socket()
    await send_stream(wire.send, events(), (), 5.0)
    assert b"".join(wire.bodies).count(b"id: ") == 2


async def test_the_first_token_is_on_the_wire_while_the_second_is_computed() -> None:
    release = asyncio.Event()

    async def script(request: GenerateRequest) -> AsyncIterator[TokenChunk]:
        yield TokenChunk(request.request_id, 0, 0, [70])
        await release.wait()
        yield TokenChunk(request.request_id, 0, 1, [71], None, FinishReason.LENGTH)

    async with (
        live_server(gateway(ScriptedGenerator(script))) as url,
        httpx.AsyncClient(base_url=url) as http,
        http.stream("POST", "/v1/completions", json=BODY) as response,
    ):
        lines = response.aiter_lines()
        first = await anext(lines)
        assert not release.is_set()
        assert json.loads(first.removeprefix("data: "))["choices"][0]["text"]
        release.set()
        rest = [line async for line in lines]
    assert rest[-2:] == ["data: [DONE]", ""]
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("num_tokens_before", [0, 3])
async def test_a_client_that_leaves_frees_the_work(stream: bool, num_tokens_before: int) -> None:
    async def script(request: GenerateRequest) -> AsyncIterator[TokenChunk]:
        for index in range(num_tokens_before):
            yield TokenChunk(request.request_id, 0, index, [70])
        await asyncio.Event().wait()

    generator = ScriptedGenerator(script)
    async with live_server(gateway(generator)) as url:
        async with httpx.AsyncClient(base_url=url) as http:
            asking = asyncio.create_task(http.post("/v1/completions", json=BODY | {"stream": stream}))
            await until(lambda: generator.num_open == 1)
            asking.cancel()
        started = time.perf_counter()
        await until(lambda: generator.num_open == 0)
        assert time.perf_counter() - started < 1.0


async def test_a_client_that_leaves_frees_a_real_engine() -> None:
    async with local_generator(step_delay_s=0.002) as generator, live_server(gateway(generator)) as url:
        async with httpx.AsyncClient(base_url=url) as http:
            many: Any = BODY | {"n": 4, "prompt": ["a", "b"]}
            async with http.stream("POST", "/v1/completions", json=many) as response:
                await anext(response.aiter_lines())
                assert generator.num_in_flight == 8
        await until(lambda: generator.num_in_flight == 0)
        await until(lambda: generator.load is not None and generator.load.num_running == 0)
        assert generator.load is not None
        assert generator.info is not None
        assert generator.load.free_blocks == generator.info.num_blocks
