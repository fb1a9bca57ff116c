"""The same bytes to the edge and to the app: nothing that they could take for different numbers of requests passes."""

import asyncio
import contextlib
import ssl
from collections import Counter
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from tests.cluster.gateway_world import live_server
from tests.edge.probes import HOST, PROBES
from tests.edge.proxies import Setting, find_proxy


class Recorder:
    """An app that notes whose requests reach it."""

    def __init__(self) -> None:
        self.hosts: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.request" and scope["path"] != "/health/ready":
            self.hosts.append(dict(scope["headers"])[b"host"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def own_host(index: int) -> bytes:
    return b"p%03d.example" % index


async def read_all(port: int, sent: bytes, trust: ssl.SSLContext | None) -> bytes:
    """What comes back until the other side closes, which it must."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust)
    writer.write(sent)
    answers = b""
    async with asyncio.timeout(30.0):
        with contextlib.suppress(ConnectionResetError):
            while part := await reader.read(65536):
                answers += part
    writer.close()
    return answers


async def send_all(port: int, trust: ssl.SSLContext | None = None) -> list[int]:
    """How many requests of each probe are answered as the app answers them."""
    sent = [probe.sent.replace(HOST, own_host(index)) for index, probe in enumerate(PROBES)]
    answers = await asyncio.gather(*(read_all(port, each, trust) for each in sent))
    return [answer.count(b"HTTP/1.1 200 ") for answer in answers]


def count_seen(recorder: Recorder) -> list[int]:
    by_host = Counter(recorder.hosts)
    seen = [by_host.pop(own_host(index), 0) for index in range(len(PROBES))]
    assert not by_host, "requests that nobody sent"
    return seen


async def test_the_app_alone_sees_what_it_should() -> None:
    recorder = Recorder()
    async with live_server(recorder) as url:
        answered = await send_all(int(url.rsplit(":", 1)[1]))
    for probe, count, seen in zip(PROBES, answered, count_seen(recorder), strict=True):
        assert (count, seen) == (probe.app, probe.app), probe.name


@pytest.mark.parametrize("name", ["envoy", "haproxy"])
async def test_the_edge_and_the_app_agree(name: str, tmp_path: Path) -> None:
    proxy, recorder = find_proxy(name), Recorder()
    async with live_server(recorder) as url:
        setting = Setting(proxy, tmp_path, int(url.rsplit(":", 1)[1]))
        async with setting.running():
            trust = setting.trust()
            trust.set_alpn_protocols(["http/1.1"])
            answered = await send_all(setting.port, trust)
            late = await read_all(setting.port, b"GET /v1/x HTTP/1.1\r\nHost: ", trust)
    assert b" 408 " in late
    wrong = []
    for probe, count, seen in zip(PROBES, answered, count_seen(recorder), strict=True):
        due = getattr(probe, name)
        if not count == seen == due:
            wrong.append(f"{probe.name}: edge let through {count}, app saw {seen}, due {due}, alone {probe.app}")
    assert not wrong, "\n".join(wrong)
