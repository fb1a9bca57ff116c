"""Key sets from real HTTP servers, well and badly behaved; files that change while a gateway runs."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import msgspec
import pytest

from cluster.auth.api_keys import KeyFile, make_key, write_key_file
from cluster.auth.config import AuthConfig, Family, IssuerConfig
from cluster.config import Edge, GatewayConfig, MantaConfig
from cluster.errors import Unauthorized
from deployments import gateway_auth, gateway_deployment, watched_file
from deployments.gateway_auth import MAX_KEY_SET_BYTES, KeySetRefused, KeySetUrl, open_auth
from deployments.watched_file import WatchedFile
from engine.errors import ConfigError
from tests.cluster.auth.auth_world import AUDIENCE, ISSUER, key_of, key_set

KEYS = key_set(key_of(Family.EDDSA))


@asynccontextmanager
async def answering(head: str, body: bytes = b"", linger_s: float = 0.0) -> AsyncIterator[str]:
    """An HTTP server that gives this answer to everybody; its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {head}\r\nConnection: close\r\n\r\n".encode() + body)
        await asyncio.sleep(linger_s)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json"
    finally:
        server.close()


async def test_a_key_set_is_fetched() -> None:
    async with answering(f"200 OK\r\nContent-Length: {len(KEYS)}", KEYS) as url:
        assert await KeySetUrl(url)() == KEYS


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0", b""),
        ("404 Not Found\r\nContent-Length: 2", b"{}"),
        ("500 Oops\r\nContent-Length: 2", b"{}"),
        ("204 No Content", b""),
        ("200 OK", b"x" * (MAX_KEY_SET_BYTES + 1)),
        ("200 OK\r\nContent-Encoding: gzip", gzip.compress(KEYS)),
    ],
    ids=["redirect", "missing", "broken", "empty", "large", "compressed"],
)
async def test_other_answers_are_no_key_sets(head: str, body: bytes) -> None:
    async with answering(head, body) as url:
        with pytest.raises(KeySetRefused):
            await KeySetUrl(url)()


async def test_an_issuer_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_auth, "FETCH_TIMEOUT_S", 0.05)
    async with answering("200 OK\r\nContent-Length: 9000", b"{", linger_s=60.0) as url:
        with pytest.raises(TimeoutError):
            await KeySetUrl(url)()
    with pytest.raises(httpx.HTTPError):
        await KeySetUrl(url)()  # and one that is not there at all


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_file, "LOOK_S", 0.0)
    path = tmp_path / "number"
    path.write_text("1")
    watched = WatchedFile("field", str(path), int)
    assert watched() == 1
    path.write_text("23")
    assert watched() == 23
    path.write_text("half a")
    assert watched() == 23
    path.unlink()
    assert watched() == 23
    path.write_text("4")
    assert watched() == 4


def test_a_file_that_could_not_be_read_is_tried_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Permissions change none of what tells a change of the content."""
    monkeypatch.setattr(watched_file, "LOOK_S", 0.0)
    path = tmp_path / "number"
    path.write_text("1")
    watched = WatchedFile("field", str(path), int)
    path.write_text("23")
    with monkeypatch.context() as forbidden:
        forbidden.setattr(Path, "read_bytes", lambda self: (_ for _ in ()).throw(PermissionError(13, "denied")))
        assert [watched() for _ in range(3)] == [1, 1, 1]
    assert watched() == 23
    assert caplog.text.count("cannot be read") == 1


def test_between_two_looks_it_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_file, "LOOK_S", 3600.0)
    path = tmp_path / "number"
    path.write_text("1")
    watched = WatchedFile("field", str(path), int)
    path.write_text("23")
    assert watched() == 1


@pytest.mark.parametrize("content", [None, "", "{", '{"keys": 1}', "\udcff"])
def test_bad_files_keep_a_gateway_from_starting(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content, errors="surrogateescape")
    issuer = IssuerConfig(issuer=ISSUER, audience=AUDIENCE, keys=str(path), family=Family.EDDSA)
    with pytest.raises(ConfigError, match=rf"auth\.api_keys.*{path}"):
        open_auth(AuthConfig(api_keys=str(path)))
    with pytest.raises(ConfigError, match=rf"auth\.issuers\[\]\.keys.*{path}"):
        open_auth(AuthConfig(issuers=(issuer,)))


async def test_keys_and_revocations_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_file, "LOOK_S", 0.0)
    (first, kept), (second, later) = (make_key("acme", ["*"], False, None) for _ in range(2))
    keys, revoked = tmp_path / "keys.json", tmp_path / "revoked.txt"
    keys.write_bytes(write_key_file(KeyFile([kept])))
    revoked.write_text("# none yet\n")
    asked = open_auth(AuthConfig(api_keys=str(keys), revoked=str(revoked)))
    assert (await asked(f"Bearer {first}")).tenant == "acme"
    with pytest.raises(Unauthorized):
        await asked(f"Bearer {second}")
    keys.write_bytes(write_key_file(KeyFile([kept, later])))
    revoked.write_text(f"  {kept.id}  # lost on a train\n")
    assert (await asked(f"Bearer {second}")).tenant == "acme"
    with pytest.raises(Unauthorized):
        await asked(f"Bearer {first}")


@pytest.mark.parametrize("edge", Edge)
@pytest.mark.parametrize("num_proxies", [0, 1])
@pytest.mark.parametrize("proxy_host", ["127.0.0.1", "0.0.0.0"])
def test_serves_proxy_faces_no_strangers(
    monkeypatch: pytest.MonkeyPatch, edge: Edge, num_proxies: int, proxy_host: str
) -> None:
    status = SimpleNamespace(proxies=dict.fromkeys(range(num_proxies), "HEALTHY"))
    client = SimpleNamespace(http_config=SimpleNamespace(host=proxy_host))
    monkeypatch.setattr(gateway_deployment.serve, "status", lambda: status)
    monkeypatch.setattr(gateway_deployment, "_get_global_client", lambda: client)
    config = MantaConfig(gateway=GatewayConfig(edge=edge))
    if proxy_host == "0.0.0.0" and (num_proxies or edge is Edge.PROXY):
        with pytest.raises(ConfigError, match=r"http_options\.host = '0\.0\.0\.0'.*set auth\.api_keys"):
            gateway_deployment._edge(config)
        config = msgspec.structs.replace(config, auth=AuthConfig(api_keys="/k.json"))
    found = gateway_deployment._edge(config)
    assert found is (edge if edge is not Edge.AUTO else Edge.PROXY if num_proxies else Edge.DIRECT)
