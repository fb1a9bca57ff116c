"""A protected server as an operator starts it: keys, tokens, what is open on each of its ports."""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
import yaml

from deployments import cli
from tests.e2e.live_server import LiveServer, live_server

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

BODY = {"model": "chain", "prompt": [1, 2, 3], "max_tokens": 4}
#: Calls that would give a stranger the cluster: one of each service of Ray that listens.
INTERNAL_CALLS = (
    "/ray.rpc.CoreWorkerService/PushTask",
    "/ray.rpc.NodeManagerService/RequestWorkerLease",
    "/ray.rpc.InternalKVGcsService/InternalKVGet",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.serve.ASGIService/HandleRequest",
)
HTTP2, CHALLENGE = b"\x00\x00\x18\x04", b"challenge"


@dataclass(frozen=True)
class Protected:
    server: LiveServer
    folder: Path

    def ask(self, credential: str | None) -> httpx.Response:
        headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
        return httpx.post(f"{self.server.url}/v1/completions", json=BODY, headers=headers, timeout=30.0)

    def metrics(self, credential: str) -> httpx.Response:
        return httpx.get(f"{self.server.url}/metrics", headers={"Authorization": f"Bearer {credential}"}, timeout=30.0)


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Protected]:
    """An engine without a model, an issuer of tokens, and no keys yet."""
    folder = tmp_path_factory.mktemp("auth")
    (folder / "keys.json").write_text('{"keys": []}')
    assert cli.main(["token", "--keys", str(folder / "issuer")]) == 0
    issuer = {
        "issuer": "manta-development", "audience": "manta", "family": "EdDSA",
        "keys": str(folder / "issuer" / "jwks.json"),
    }  # fmt: skip
    settings = {
        "model": "chain", "replicas": 1, "router": {"shards": 1},
        "auth": {"api_keys": str(folder / "keys.json"), "issuers": [issuer]},
    }  # fmt: skip
    (folder / "manta.yaml").write_text(yaml.safe_dump(settings))
    with live_server(folder / "serve.log", "--config", str(folder / "manta.yaml"), model="chain") as server:
        yield Protected(server, folder)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out.strip()


def test_keys_and_tokens_open_it_until_they_are_revoked(
    protected: Protected, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert protected.ask(None).status_code == 401
    token = printed(capsys, "token", "--keys", str(protected.folder / "issuer"), "--models", "chain")
    assert protected.ask(token).status_code == 200
    assert protected.ask(token[:-2]).status_code == 401
    other = printed(capsys, "token", "--keys", str(protected.folder / "issuer"), "--models", "other")
    assert protected.ask(other).status_code == 404

    file = str(protected.folder / "keys.json")
    key = printed(capsys, "key", "--file", file, "create", "--tenant", "acme", "--models", "chain")
    wait_for(protected, key, 200)
    bench = ["bench", "--url", protected.server.url, "--requests", "2", "--output-tokens", "4", "--json"]
    assert '"failed": 0' in printed(capsys, *bench, "--key", key)
    monkeypatch.setenv("MANTA_API_KEY", key)
    assert '"failed": 0' in printed(capsys, *bench)
    assert "is revoked" in printed(capsys, "key", "--file", file, "revoke", key.split("_")[1])
    wait_for(protected, key, 401)
    assert protected.ask(token).status_code == 200

    admin = printed(capsys, "key", "--file", file, "create", "--admin")
    wait_for(protected, admin, 200)
    told = {who: protected.metrics(who) for who in (token, admin)}
    assert [answer.status_code for answer in told.values()] == [403, 200]
    for counted in ('reason="missing"} ', 'reason="revoked"} ', 'outcome="ok"} 1'):
        assert counted in told[admin].text


def wait_for(protected: Protected, credential: str, status: int) -> None:
    """Gateways look at their files once a second."""
    until = time.monotonic() + 10.0
    while protected.ask(credential).status_code != status:
        assert time.monotonic() < until, f"{status} is not seen"
        time.sleep(0.1)


def test_what_is_open_on_every_port(protected: Protected) -> None:
    """All that listens: on loopback, or it asks for the cluster's token; and what it says to a stranger."""
    front = protected.server.process.pid
    family = [psutil.Process(front), *psutil.Process(front).children(recursive=True)]
    listening = {port for process in family for port in ports_of(process)}
    assert len(listening) >= 8, "these are not all"
    num_closed = 0
    for host, port in sorted(listening):
        said = first_words(port)
        if said.startswith(HTTP2):
            codes = {internal_call(port, call) for call in INTERNAL_CALLS}
            assert codes <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}, (port, codes)
            assert grpc.StatusCode.UNAUTHENTICATED in codes, f"port {port} asks nobody who he is"
            continue
        assert is_loopback(host), f"{host}:{port} says {said!r} to everybody"
        if CHALLENGE in said or said.startswith(b"HTTP/1.1 401"):
            num_closed += 1
            continue
        if b" 404 " in said and said.endswith(b'{"status":"unknown path"}'):
            continue  # the gateway's health: three paths, which say nothing about anyone
        if b'"unknown path"' in said:
            continue  # health, for the orchestrator's probes
        assert b" 200 OK\r\n" in said and b"text/plain; version=" in said, (
            f"{port} is open, and not to Ray's metrics: {said!r}"
        )
    assert num_closed >= 3, "gateway, replica and router shard"


def ports_of(process: psutil.Process) -> list[tuple[str, int]]:
    try:
        found = process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return []
    return [tuple(one.laddr) for one in found if one.status == psutil.CONN_LISTEN]


def is_loopback(host: str) -> bool:
    return ip_address(host.removeprefix("::ffff:")).is_loopback


def first_words(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5.0) as stranger:
        stranger.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        said = stranger.recv(64 * 1024)
        while said.startswith(b"HTTP") and (more := stranger.recv(64 * 1024)):
            said += more
        return said


def internal_call(port: int, call: str) -> grpc.StatusCode:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(call)(b"", timeout=5.0)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK
