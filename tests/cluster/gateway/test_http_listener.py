"""What never reaches the app: late, large and broken heads are refused in JSON; a reader that stalls is dropped."""

import asyncio
import contextlib
import json
import logging.handlers
import socket
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

import cluster.gateway.http_listener
from cluster.gateway.http_listener import listener_settings
from engine.request import FinishReason, GenerateRequest, TokenChunk
from tests.cluster.gateway_world import MODEL, ScriptedGenerator, gateway, live_server, until

HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n"


async def no_tokens(request: GenerateRequest) -> AsyncIterator[TokenChunk]:
    yield TokenChunk(request.request_id, 0, 0, [70], None, FinishReason.LENGTH)


async def exchange(*parts: bytes, pause_s: float = 0.0) -> bytes:
    """Everything that comes back until the server closes."""
    async with live_server(gateway(ScriptedGenerator(no_tokens))) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause_s)
        answer = await asyncio.wait_for(reader.read(), 5.0)
        writer.close()
        return answer


def error_of(answer: bytes, status: int) -> Any:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"x-request-id: req_" in head
    return json.loads(body)["error"]["code"]


async def test_a_whole_head_reaches_the_app() -> None:
    answer = await exchange(HEAD + b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("parts", [(), (b"GET /hea",), (HEAD + b"X-Slow: ", b"a", b"b", b"c")])
async def test_a_late_head_is_given_up(parts: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.gateway.http_listener, "HEAD_TIMEOUT_S", 0.1)
    assert error_of(await exchange(*parts, pause_s=0.02), 408) == "head_timeout"


async def test_a_second_head_on_a_connection_is_timed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.gateway.http_listener, "HEAD_TIMEOUT_S", 0.1)
    answer = await exchange(HEAD + b"\r\n", b"GET /hea", pause_s=0.02)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert error_of(answer[answer.index(b"HTTP/1.1 408") :], 408) == "head_timeout"


@pytest.mark.parametrize("pause_s", [0.0, 0.05])
async def test_a_large_body_is_no_head(pause_s: float) -> None:
    body = json.dumps({"prompt": "Hi", "model": MODEL, "max_tokens": 1, "user": "u" * 300_000}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    cut = len(whole) - 100_000
    for parts in ((whole,), (whole[:200], whole[200:]), (whole[:cut], whole[cut:])):
        answer = await exchange(*parts, pause_s=pause_s)
        assert answer.startswith(b"HTTP/1.1 200 "), answer[:300]


@pytest.mark.parametrize(
    "parts",
    [
        (HEAD + b"X-Large: " + b"a" * 40_000 + b"\r\n\r\n",),
        (HEAD + b"".join(b"X-%d: %b\r\n" % (i, b"a" * 1000) for i in range(40)) + b"\r\n",),
        (HEAD + b"X-Endless: ", *[b"a" * 9_000] * 4),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",),
    ],
)
async def test_a_large_head_is_refused(parts: tuple[bytes, ...]) -> None:
    assert error_of(await exchange(*parts, pause_s=0.02), 431) == "head_too_large"


async def test_many_headers_are_refused() -> None:
    many = b"".join(b"x-%d: a\r\n" % index for index in range(101))
    assert error_of(await exchange(HEAD + many + b"\r\n"), 431) == "too_many_headers"


async def test_dots_that_lead_nowhere_reach_the_app() -> None:
    answer = await exchange(b"GET /v1/models/a..b%2fc?x=/../ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", "bad_host"),
        (HEAD + b"Host: y\r\n\r\n", "bad_host"),
        (b"GET /v1/..%2fadmin HTTP/1.1\r\nHost: x\r\n\r\n", "bad_path"),
        (b"GET /v1/../admin?a=b HTTP/1.1\r\nHost: x\r\n\r\n", "bad_path"),
        (b"GET /v1/%2E HTTP/1.1\r\nHost: x\r\n\r\n", "bad_path"),
        (b"nonsense\r\n\r\n", "invalid_http"),
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "invalid_http"),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", "invalid_http"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "invalid_http"),
    ],
)
async def test_a_broken_head_is_refused(request_: bytes, code: str) -> None:
    answer = await exchange(request_)
    assert error_of(answer[answer.rindex(b"HTTP/1.1 ") :], 400) == code


async def test_the_connection_of_a_stalled_reader_is_dropped() -> None:
    """The socket's buffers fill, the gateway keeps 64 KiB, and after the limit the work ends and the socket is gone."""
    produced = 0

    async def endless(request: GenerateRequest) -> AsyncIterator[TokenChunk]:
        nonlocal produced
        while True:
            yield TokenChunk(request.request_id, 0, produced, [70] * 2000)
            produced += 2000
            await asyncio.sleep(0)

    generator = ScriptedGenerator(endless)
    async with live_server(gateway(generator, stream_stall_s=0.2)) as url:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
            body = json.dumps({"model": MODEL, "prompt": "Hi", "stream": True, "max_tokens": 1000}).encode()
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            slow.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            await until(lambda: generator.num_open == 1)
            await until(lambda: generator.num_open == 0, timeout_s=20.0)
            port = slow.getsockname()[1]
            await until(lambda: all(found.raddr[1:] != (port,) for found in psutil.Process().net_connections("tcp4")))
            slow.settimeout(5.0)
            received = b""
            with contextlib.suppress(ConnectionResetError):
                while part := slow.recv(1 << 20):
                    received += part
    assert produced > 0
    assert not received.endswith(b"0\r\n\r\n")


async def test_closing_the_sending_half_gives_up_the_request() -> None:
    async def waiting(request: GenerateRequest) -> AsyncIterator[TokenChunk]:
        yield TokenChunk(request.request_id, 0, 0, [70])
        await asyncio.Event().wait()

    generator = ScriptedGenerator(waiting)
    async with live_server(gateway(generator)) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        body = json.dumps({"model": MODEL, "prompt": "Hi", "stream": True}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await reader.readuntil(b"data: ")
        assert generator.num_open == 1
        writer.write_eof()
        await until(lambda: generator.num_open == 0)
        assert not (await reader.read()).endswith(b"0\r\n\r\n")
        writer.close()


def test_a_listener_leaves_the_logs_of_its_process_alone() -> None:
    """Ray Serve's buffered log among them: without it a restarted controller stops the gateway."""
    target = logging.NullHandler()
    buffered = logging.handlers.MemoryHandler(10, target=target)
    try:
        listener_settings(gateway(ScriptedGenerator(no_tokens)))
        assert buffered.target is target
    finally:
        buffered.close()
