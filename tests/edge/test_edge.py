"""What passes the edge and what does not, with HTTP/2 outside and a real gateway, or a recorder, behind the sidecar."""

import asyncio
import contextlib
import json
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from joserfc import jwt
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.request import FinishReason, GenerateRequest, TokenChunk
from tests.cluster.gateway_world import MODEL, ScriptedGenerator, gateway, live_server, until
from tests.deployments.gateways_world import gateways
from tests.deployments.serving_world import chain, serving_world
from tests.deployments.test_resuming import LENGTH, PROMPT, Reader, Switch
from tests.edge.proxies import Setting, find_proxy

KEY = {"Authorization": "Bearer manta_0"}
both = pytest.mark.parametrize("name", ["envoy", "haproxy"])


@contextlib.asynccontextmanager
async def edge(name: str, folder: Path, *urls: str) -> AsyncIterator[Setting]:
    setting = Setting(find_proxy(name), folder, *(int(url.rsplit(":", 1)[1]) for url in urls))
    async with setting.running():
        yield setting


def client(setting: Setting) -> httpx.AsyncClient:
    return httpx.AsyncClient(verify=setting.trust(), base_url=setting.url, http2=True)


class Echo:
    """Answers with the headers that came; counts all but questions of health."""

    def __init__(self) -> None:
        self.num_asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_asked += scope["path"] != "/health/ready"
        while (await receive()).get("more_body"):
            pass
        body = json.dumps([[name.decode(), value.decode()] for name, value in scope["headers"]]).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


def with_health(app: ASGIApp) -> ASGIApp:
    """That board is not there without replicas."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        await (Echo() if scope["path"] == "/health/ready" else app)(scope, receive, send)

    return run


@both
def test_the_proxy_takes_the_configurations(name: str, tmp_path: Path) -> None:
    setting = Setting(find_proxy(name), tmp_path)
    for configuration in (*setting.sidecar_configurations(), setting.edge_configuration()):
        words = [setting.proxy.executable, *setting.proxy.check, configuration]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert "WARNING" not in done.stderr.upper()


@both
async def test_events_pass_one_by_one_and_a_client_that_leaves_is_missed(name: str, tmp_path: Path) -> None:
    may_go_on = asyncio.Event()

    async def two(request: GenerateRequest) -> AsyncIterator[TokenChunk]:
        yield TokenChunk(request.request_id, 0, 0, [70])
        await may_go_on.wait()
        yield TokenChunk(request.request_id, 0, 1, [71], None, FinishReason.LENGTH)

    generator = ScriptedGenerator(two)
    body = {"model": MODEL, "prompt": "Hi", "stream": True, "max_tokens": 2}
    async with live_server(with_health(gateway(generator))) as url, edge(name, tmp_path, url) as setting:
        async with client(setting) as http, http.stream("POST", "/v1/completions", json=body, headers=KEY) as answer:
            assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
            lines = answer.aiter_lines()
            assert "data: {" in await anext(lines)
            may_go_on.set()
            assert "data: [DONE]" in [line async for line in lines]
        may_go_on.clear()
        async with client(setting) as http, http.stream("POST", "/v1/completions", json=body, headers=KEY) as answer:
            await anext(answer.aiter_lines())
            assert generator.num_open == 1
        await until(lambda: generator.num_open == 0)


@both
async def test_a_stream_is_resumed_through_the_edge(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving_world(2, step_delay_s=0.002) as world, gateways(world) as (first, second):
        switch = Switch(first)
        async with live_server(switch) as url, edge(name, tmp_path, url) as setting:
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.crt"))
            monkeypatch.setenv("MANTA_API_KEY", "manta_0")
            reader = Reader(setting.url)
            await reader.take(5)
            switch.turn_to(second)
            assert await reader.take() == chain(PROMPT, LENGTH)
        assert reader.stream.num_resumed == 1


async def first_line(setting: Setting, sent: bytes) -> bytes:
    """Of the answer to a body that is too long, as soon as so much of it has been sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", setting.port, ssl=setting.trust())
    writer.write(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer manta_0\r\nContent-Length: 5000000\r\n\r\n")
    writer.write(sent)
    line = await reader.readline()
    writer.transport.abort()
    return line


@both
async def test_who_passes_and_with_which_headers(name: str, tmp_path: Path) -> None:
    async with live_server(Echo()) as url, edge(name, tmp_path, url) as setting, client(setting) as http:
        token = {"iss": "https://login.example.com/", "aud": "manta", "sub": "a", "exp": int(time.time()) + 60}
        signed = jwt.encode({"alg": "ES256", "kid": setting.issuer.kid}, token, setting.issuer, algorithms=["ES256"])
        forged = signed[:-8] + ("AAAAAAAA" if signed[-8:] != "AAAAAAAA" else "BBBBBBBB")
        for path, credential, status in [
            ("/v1/models", None, 401),
            ("/v1/models", "Basic YTpi", 401),
            ("/v1/models", f"Bearer {forged}", 401),
            ("/v1/models", f"Bearer {signed}", 200),
            ("/v1/models", "Bearer manta_0", 200),
            ("/health/ready", None, 200),
            ("/metrics", "Bearer manta_0", 403),
            ("/health/../metrics", "Bearer manta_0", 403),
            ("/health/..%2fmetrics", None, 400),
        ]:
            answer = await http.get(path, headers={"Authorization": credential} if credential else {})
            assert answer.status_code == status, (path, credential)
            assert status == 400 or len(answer.headers.get_list("x-request-id")) == 1

        said = {"X-Tenant": "a", "x-tenant-id": "b", "X-Forwarded-Client-Cert": "c", "x-request-id": "d"}
        answer = await http.get("/v1/models?secret=e", headers={**KEY, **said, "X-Forwarded-For": "9.9.9.9"})
        came = dict(answer.json())
        assert came["authorization"] == KEY["Authorization"]
        assert came["x-request-id"] == answer.headers["x-request-id"] != "d"
        assert "9.9.9.9" not in came["x-forwarded-for"]
        assert not came.keys() & {"x-tenant", "x-tenant-id", "x-forwarded-client-cert"}
        assert b" 413 " in await first_line(setting, b"a" * 5_000_000 if name == "envoy" else b"")
    log = setting.access_log()
    assert '"path":"/v1/models"' in log.replace("\\/", "/")
    assert "secret" not in log and "manta_0" not in log


@both
async def test_the_sidecar_takes_the_edge_alone(name: str, tmp_path: Path) -> None:
    async def status(identity: str) -> int:
        """0: the connection is refused."""
        trust = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
        trust.check_hostname = False
        if identity:
            trust.load_cert_chain(tmp_path / f"{identity}.pem")
        async with httpx.AsyncClient(verify=trust) as http:
            try:
                return (await http.get(setting.sidecar_url)).status_code
            except (httpx.TransportError, ssl.SSLError):
                return 0

    async with live_server(Echo()) as url, edge(name, tmp_path, url) as setting:
        assert await status("edge-client") == 200
        assert await status("") == 0
        assert await status("sidecar") in (0, 403)


async def test_a_gateway_that_has_just_gone_is_passed_over(tmp_path: Path) -> None:
    """Before any check of its health: what could not begin there begins at the other one."""
    stays, goes = Echo(), Echo()
    async with contextlib.AsyncExitStack() as staying, contextlib.AsyncExitStack() as going:
        one, other = live_server(stays), live_server(goes)
        urls = await staying.enter_async_context(one), await going.enter_async_context(other)
        setting = await staying.enter_async_context(edge("envoy", tmp_path, *urls))
        http = await staying.enter_async_context(client(setting))
        async with asyncio.timeout(15.0):
            while not (stays.num_asked and goes.num_asked):  # the edge has found both ready
                assert (await http.get("/v1/x", headers=KEY)).status_code == 200
                await asyncio.sleep(0.03)
        await going.aclose()
        assert {(await http.get("/v1/x", headers=KEY)).status_code for _ in range(20)} == {200}
