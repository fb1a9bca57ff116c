"""Health over real sockets: from a thread of its own, true within a second of a fault, never dead for being busy."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

import pytest

from cluster.calls.record import Caller, CallRecord
from cluster.config import GatewayConfig
from cluster.generation import RequestContext
from cluster.health import model_health
from cluster.health.board import PATHS, HealthBoard
from cluster.health.model_health import Probe
from cluster.metrics import declared
from deployments import health_listener
from deployments.health_listener import HealthListener, open_health_listener
from engine.errors import ConfigError
from tests.cluster.gateway_world import client
from tests.deployments.gateways_world import Gateway, gateways
from tests.deployments.serving_world import HOST, ServingWorld, request, serving_world, until

LIVE, READY, PROGRESS = PATHS
BODY: dict[str, Any] = {"model": "m", "prompt": [11, 12, 13], "max_tokens": 10, "ignore_eos": True}


@contextmanager
def listening(board: HealthBoard) -> Iterator[str]:
    listener = HealthListener(board, HOST, 0)
    try:
        yield f"http://{HOST}:{listener.port}"
    finally:
        listener.close()


@asynccontextmanager
async def ready_gateway(**world: Any) -> AsyncIterator[tuple[ServingWorld, Gateway, str]]:
    async with serving_world(**world) as served, gateways(served) as (gateway, _other):
        with listening(gateway.health.board) as url:
            await until(lambda: gateway.health.board.ready().status == "ok")
            yield served, gateway, url


def ask(url: str, path: str, method: str = "GET") -> HTTPResponse:
    """Answered within a second, or not at all."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=1.0)
    connection.request(method, path)
    return connection.getresponse()


def statuses(url: str) -> list[int]:
    return [ask(url, path).status for path in PATHS]


async def test_a_gateway_whose_event_loop_is_blocked_is_alive_and_not_ready() -> None:
    async with ready_gateway() as (_world, gateway, url):
        assert await asyncio.to_thread(statuses, url) == [200, 200, 200]
        unblocked = threading.Event()
        with ThreadPoolExecutor(1) as outside:
            seen = outside.submit(watch, url, unblocked)
            time.sleep(5.0)  # noqa: ASYNC251  # this is the fault
            unblocked.set()
            answers = await asyncio.wrap_future(seen)
        assert {live for live, _, _ in answers} == {200} and len(answers) > 10
        readiness = [ready for _, ready, _ in answers]
        assert set(readiness[len(readiness) // 2 :]) == {503}
        await until(lambda: statuses_now(gateway) == [200, 200, 200])


def watch(url: str, unblocked: threading.Event) -> list[list[int]]:
    """All answers until then; the last may have come later."""
    answers = []
    while not unblocked.wait(0.1):
        answers.append(statuses(url))
    return answers[:-1]


def statuses_now(gateway: Gateway) -> list[int]:
    return [gateway.health.board.answer(path).http_status for path in PATHS]


async def test_readiness_follows_faults_within_a_second() -> None:
    async with ready_gateway(num_replicas=2) as (world, gateway, _url):
        world.replicas[0].links.close()
        world.replicas[0].server.close()
        await asyncio.sleep(0.2)
        assert statuses_now(gateway) == [200, 200, 200], "another replica answers"
        world.replicas[1].break_engine("planted")
        asked = asyncio.create_task(world.generate(request("q", [1], 5)))
        await until(lambda: statuses_now(gateway) == [200, 503, 200], timeout_s=1.0)
        assert gateway.health.board.ready().why == ["m: no replica takes requests"]
        asked.cancel()


async def test_a_replica_that_drains_takes_nothing() -> None:
    async with ready_gateway() as (world, gateway, _url):
        world.replicas[0].server.leave()
        await until(lambda: statuses_now(gateway) == [200, 503, 200], timeout_s=1.0)


async def test_a_gateway_that_leaves_says_so_at_once() -> None:
    async with ready_gateway() as (_world, gateway, url):
        gateway.health.leave()
        assert await asyncio.to_thread(statuses, url) == [200, 503, 200]


async def test_a_probe_is_not_waited_for_when_the_gateway_leaves() -> None:
    async with serving_world() as world, gateways(world) as (gateway, _other):
        with world.replicas[0].stuck():
            await until(lambda: gateway.dispatcher.num_in_flight == 1)
            gateway.health.leave()
            await until(lambda: gateway.dispatcher.num_in_flight == 0, timeout_s=1.0)
            await asyncio.sleep(0.3)
            assert gateway.dispatcher.num_in_flight == 0


async def test_overload_is_no_fault() -> None:
    async with (
        ready_gateway(max_num_seqs=1, step_delay_s=0.02) as (_world, gateway, url),
        client(gateway.app) as http,
    ):
        asked = [asyncio.create_task(http.post("/v1/completions", json=BODY)) for _ in range(200)]
        for _ in range(20):
            assert await asyncio.to_thread(statuses, url) == [200, 200, 200]
            await asyncio.sleep(0.05)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def test_an_answer_that_nobody_reads_is_no_work_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_health, "STUCK_S", 0.3)
    monkeypatch.setattr(model_health, "PROVEN_S", 0.3)
    async with ready_gateway() as (_world, gateway, _url):
        record = CallRecord("c", "m", Caller(), 0.0)
        context = RequestContext(model="m", tenant="t", record=record)
        async with gateway.calls.run(record):
            unread = gateway.dispatcher.stream(request("q", [1], 20), context)
            await anext(unread)
            await until(lambda: record.num_output_tokens == 20)
            probes = gateway.metrics.instruments.number(declared.PROBES, "m", Probe.PASSED)
            num_probes = probes.value
            await until(lambda: probes.value > num_probes + 1)
            for _ in range(10):
                await asyncio.sleep(0.1)
                assert statuses_now(gateway) == [200, 200, 200]
            assert not gateway.dispatcher.num_waiting()
            await unread.aclose()  # type: ignore[attr-defined]


async def test_a_way_to_a_token_that_is_broken_is_found_by_the_probe() -> None:
    async with serving_world() as world, gateways(world) as (gateway, _other):
        with world.replicas[0].stuck():
            await asyncio.sleep(0.5)
            assert gateway.health.board.ready().why == ["m: not tried yet"]
        await until(lambda: gateway.health.board.ready().status == "ok")


async def test_the_api_port_answers_the_same() -> None:
    async with ready_gateway() as (_world, gateway, url), client(gateway.app) as http:
        for path in (*PATHS, f"{READY}?model=m", f"{READY}?model=unknown"):
            own = await asyncio.to_thread(ask, url, path)
            main = await http.get(path)
            assert (own.status, own.read()) == (main.status_code, main.content)


def test_slow_and_strange_clients_hold_nothing_up() -> None:
    board = HealthBoard(["m"])
    with listening(board) as url:
        slow = [begin(url) for _ in range(40)]
        assert ask(url, LIVE).read() == b'{"status":"ok","why":[]}'
        assert ask(url, LIVE, "HEAD").status == 200
        assert ask(url, "/metrics").status == 404
        assert ask(url, LIVE, "POST").status == 501
        for connection in slow:
            connection.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "health"]


def test_trickling_connections_take_no_place_from_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, a probe is answered; and none lives long, though each sends a byte now and then."""
    board = HealthBoard(["m"])
    with listening(board) as url:
        slow = [begin(url) for _ in range(2 * health_listener.MOST_CONNECTIONS)]
        for _ in range(5):
            assert ask(url, LIVE).status == 200
        monkeypatch.setattr(health_listener, "LIFE_S", 0.3)
        assert all(is_cut(connection) for connection in slow)


def is_cut(connection: socket.socket) -> bool:
    """Sends a byte ten times a second, for five seconds at most."""
    connection.settimeout(0.1)
    for _ in range(50):
        try:
            connection.sendall(b"x")
            return connection.recv(1) == b""
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


def begin(url: str) -> socket.socket:
    """A request that does not go on."""
    connection = socket.create_connection((HOST, urlsplit(url).port))
    connection.sendall(b"GET /health")
    return connection


def test_a_port_that_is_taken_is_an_error_only_where_it_was_chosen(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        with pytest.raises(ConfigError, match="health_port"):
            open_health_listener(HealthBoard([]), GatewayConfig(health_port=port))
        derived_from = port - 10_000 if port >= 10_001 else port + 10_000
        config = GatewayConfig(port=derived_from)
        assert config.health_listener_port == port
        assert open_health_listener(HealthBoard([]), config) is None
    assert "gateway.health_port" in caplog.text
