"""Replicas and gateways take their leave in order: nothing is admitted, nothing is lost, and the end is visible."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

import deployments.gateway
from cluster.calls.record import Caller, CallRecord
from cluster.config import GatewayConfig, LedgerConfig, MantaConfig
from cluster.replica.replica_drain import ReplicaDrain
from cluster.streams.flight import AttemptEnd, End, Flight
from deployments import usage_ledger
from deployments.gateway import Gateway
from deployments.http_door import HttpDoor
from deployments.leave import Leave
from deployments.take_leave import drain_gateway, drain_replica
from deployments.usage_ledger import read_usage
from engine.errors import EngineDead
from tests.cluster.gateway_world import gateway, served_model
from tests.deployments.serving_world import HOST, Replica, ServingWorld, chain, request, serving_world, until
from tests.deployments.test_serving_path import tokens_of


async def leave(replica: Replica, drain_s: float, grace_s: float, has_others: Callable[[], bool]) -> None:
    async def find_others() -> bool:
        return has_others()

    drain = ReplicaDrain(asyncio.get_running_loop().time(), drain_s, grace_s)
    await drain_replica(replica.server, replica.engine, drain, find_others)
    replica.links.close()


async def busy(world: ServingWorld, count: int, length: int) -> list[asyncio.Task[list[int]]]:
    """So many requests, all running."""

    async def ask(number: int) -> list[int]:
        return tokens_of(await world.generate(request(f"q{number}", [number], length)))

    tasks = [asyncio.create_task(ask(number)) for number in range(count)]
    await until(lambda: world.num_running() == count)
    return tasks


async def test_long_streams_move_and_the_replica_ends() -> None:
    async with serving_world(num_replicas=2, step_delay_s=0.005) as world:
        asked = await busy(world, 6, 300)
        leaver = world.replicas[0]
        assert leaver.server.num_requests
        await leave(leaver, drain_s=0.1, grace_s=60.0, has_others=lambda: True)
        assert leaver.server.num_requests == 0
        assert await asyncio.gather(*asked) == [chain([number], 300) for number in range(6)]
        with pytest.raises(EngineDead):
            leaver.engine.submit(request("late", [1]))


async def test_streams_run_to_their_end_where_nobody_else_has_their_weights() -> None:
    async with serving_world(num_replicas=1, step_delay_s=0.002) as world:
        asked = await busy(world, 3, 150)
        await leave(world.replicas[0], drain_s=0.0, grace_s=60.0, has_others=lambda: False)
        assert await asyncio.gather(*asked) == [chain([number], 150) for number in range(3)]


async def test_what_runs_when_a_replica_closes_is_handed_on_not_lost_with_it() -> None:
    async with serving_world(num_replicas=2, step_delay_s=0.005) as world:
        asked = await busy(world, 4, 100)
        leaver = world.replicas[0]
        assert leaver.server.num_requests
        ends: list[AttemptEnd] = []
        ended = world.dispatcher._migration.ended

        def note(which: Iterable[tuple[Flight, AttemptEnd]]) -> None:
            noted = list(which)
            ends.extend(how for _, how in noted)
            ended(noted)

        world.dispatcher._migration.ended = note  # type: ignore[method-assign]
        leaver.server.leave()
        await leaver.server.close_gently(1.0)
        assert await asyncio.gather(*asked) == [chain([number], 100) for number in range(4)]
        assert {how.end for how in ends} == {End.REFUSED, End.FINISHED}


async def test_a_leaving_replica_gets_nothing_new() -> None:
    async with serving_world(num_replicas=2) as world:
        world.replicas[0].server.leave()
        await until(lambda: any(replica["is_draining"] for replica in world.shard.router.status(0.0)["replicas"]))
        for number in range(8):
            assert tokens_of(await world.generate(request(f"q{number}", [number], 3))) == chain([number], 3)
        assert world.replicas[0].core.scheduler.load().num_output_tokens == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


async def test_a_gateway_that_leaves_accepts_nobody_and_ends_its_streams_with_an_error() -> None:
    port = free_port()
    async with serving_world(step_delay_s=0.01) as world, httpx.AsyncClient(timeout=10.0) as client:
        dispatcher = world.dispatcher
        door = HttpDoor(gateway(dispatcher, {"m": msgspec.structs.replace(served_model(), name="m")}), HOST, port)
        body = {"model": "m", "prompt": "Hi", "stream": True, "max_tokens": 1000}
        asked = asyncio.create_task(client.post(f"http://{HOST}:{port}/v1/completions", json=body))
        await until(lambda: dispatcher.num_in_flight == 1)
        leaving = asyncio.create_task(drain_gateway(dispatcher, door, 0.3))
        await asyncio.sleep(0.05)
        with pytest.raises(OSError, match="refused"):
            await asyncio.open_connection(HOST, port)
        answer = await asked
        assert answer.status_code == 200
        assert "gateway_closing" in answer.text
        assert "[DONE]" not in answer.text
        await leaving
        assert door.has_ended


async def test_a_leave_is_taken_once_and_ends_the_process_unless_serve_does() -> None:
    taken, ended = 0, 0

    async def take() -> None:
        nonlocal taken
        taken += 1
        await asyncio.sleep(0.01)

    def end() -> None:
        nonlocal ended
        ended += 1

    by_signal = Leave(take, end)
    by_signal.begin()
    by_signal.begin()
    await until(lambda: ended == 1)
    by_serve = Leave(take, end)
    await by_serve.wait()
    assert (taken, ended, by_serve.has_begun) == (2, 1, True)


@pytest.mark.parametrize(("close_s", "num_rows"), [(5.0, 1), (0.01, 0)])
async def test_a_gateway_that_leaves_waits_for_its_ledger_but_not_for_ever(
    close_s: float, num_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_has_time = threading.Event()
    write = usage_ledger._LedgerFile.write

    def write_late(file: Any, rows: Any) -> None:
        disk_has_time.wait(10.0)
        write(file, rows)

    monkeypatch.setattr(usage_ledger._LedgerFile, "write", write_late)
    monkeypatch.setattr(deployments.gateway, "CLOSE_S", close_s)
    config = MantaConfig(gateway=GatewayConfig(port=free_port()), ledger=LedgerConfig(dir=str(tmp_path)))
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with serving_world() as world:
        leaver = Gateway(config, "g", world.addresses, {"m": served_model()})
        await leaver.open(with_http=False)
        record = CallRecord("c", "m", Caller(), 1.0)
        record.end("ok", 200, 2.0)
        for sink in leaver._sinks.sinks:
            sink.ended(record)
        leave = Leave(leaver.leave, lambda: ended.set_result(sum(1 for f in tmp_path.iterdir() for _ in read_usage(f))))
        leave.begin()
        await asyncio.sleep(0.2)
        assert ended.done() is (num_rows == 0)
        disk_has_time.set()
        assert await ended == num_rows
        leaver._links.close()
        if leaver._health_listener is not None:
            await asyncio.to_thread(leaver._health_listener.close)
