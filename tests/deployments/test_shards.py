"""Several router shards: replicas at home in one of them, requests in any, and none of them needed."""

import asyncio

import pytest

from cluster.config import RouterConfig
from cluster.frames import Announce, FromRouter, Grant, Report
from deployments.router_shard import RouterShard
from deployments.transport import connect
from tests.cluster.router_world import descriptor, load, replica_info
from tests.deployments.serving_world import HOST, SECRET, ServingWorld, chain, request, serving_world, until
from tests.deployments.test_serving_path import tokens_of
from tests.deployments.test_transport import Recorder


def homes(world: ServingWorld) -> list[set[str]]:
    """The replicas that each shard has."""
    return [set(shard.replicas) for shard in world.shards]


async def test_replicas_are_shared_out_and_shards_know_each_other() -> None:
    async with serving_world(num_replicas=2, num_shards=2) as world:
        await until(lambda: homes(world) == [{"r0"}, {"r1"}])
        await until(lambda: all(shard.others for shard in world.shards))
        answers = await asyncio.gather(*(world.generate(request(f"q{i}", [i, 7], 5)) for i in range(20)))
        assert [tokens_of(answer) for answer in answers] == [chain([i, 7], 5) for i in range(20)]


async def test_a_replica_of_a_lost_shard_goes_to_the_other_and_comes_back() -> None:
    async with serving_world(num_replicas=2, num_shards=2, step_delay_s=0.002) as world:
        await until(lambda: homes(world) == [{"r0"}, {"r1"}])
        running = asyncio.create_task(world.generate(request("long", [1], 200)))
        await until(lambda: world.num_running() == 1)
        world.stop_router(0)
        await until(lambda: set(world.shards[1].replicas) == {"r0", "r1"})
        assert tokens_of(await world.generate(request("q", [2], 5))) == chain([2], 5)
        await world.start_router(0)
        await until(lambda: homes(world) == [{"r0"}, {"r1"}])
        assert tokens_of(await running) == chain([1], 200)


async def test_an_idle_shard_takes_requests_from_one_without_replicas() -> None:
    async with serving_world(num_replicas=1, num_shards=2) as world:
        await until(lambda: homes(world) == [{"r0"}, set()] and bool(world.shards[1].others))
        answers = await asyncio.gather(*(world.generate(request(f"q{i}", [i], 3)) for i in range(12)))
        assert [tokens_of(answer) for answer in answers] == [chain([i], 3) for i in range(12)]
        assert world.shards[1].router.num_granted == 0


async def test_a_gateway_that_lets_its_grants_lapse_in_silence_is_cut_off() -> None:
    shard = RouterShard(RouterConfig(lease_s=0.1), SECRET)
    where = (HOST, await shard.start(HOST))
    frozen, idle = Recorder(), Recorder()
    gateway = await connect(where, FromRouter, SECRET, ("gateway", "frozen"), frozen)
    await connect(where, FromRouter, SECRET, ("gateway", "idle"), idle)
    replica = await connect(where, FromRouter, SECRET, ("replica", "r1"), Recorder())
    replica.send(Announce(replica_info("r1")))
    replica.send(Report(load(), []))
    gateway.send(descriptor("q"))
    await until(lambda: any(isinstance(frame, Grant) for frame in frozen.frames))
    await until(lambda: frozen.lost)
    await until(lambda: set(shard.gateways) == {"idle"})
    assert not idle.lost
    shard.close()


async def test_a_replica_that_reports_nothing_for_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.router.router.HOPELESS_S", 0.3)
    async with serving_world(num_replicas=1, num_shards=2) as world:
        await until(lambda: homes(world) == [{"r0"}, set()])
        gone, peer = (HOST, world.ports[0]), Recorder()
        replica = await connect(gone, FromRouter, SECRET, ("replica", "gone"), peer)
        replica.send(Announce(replica_info("gone")))
        await until(lambda: "gone" in world.dispatcher.replicas)
        await until(lambda: peer.lost)
        await until(lambda: set(world.dispatcher.replicas) == {"r0"})


async def test_a_shard_that_cannot_tick_lets_go_of_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = RouterShard(RouterConfig(), SECRET)
    where, peer = (HOST, await shard.start(HOST)), Recorder()
    await connect(where, FromRouter, SECRET, ("gateway", "g"), peer)
    assert not shard.has_failed

    def fail(now: float) -> None:
        raise AssertionError("no request is both held and queued")

    monkeypatch.setattr(shard.router, "on_tick", fail)
    await until(lambda: peer.lost)
    assert shard.has_failed


async def test_a_shard_asks_its_replica_to_leave() -> None:
    async with serving_world(num_replicas=2, num_shards=2) as world:
        await until(lambda: homes(world) == [{"r0"}, {"r1"}])
        shard: RouterShard = world.shards[1]
        assert not shard.drain("r0")
        assert shard.drain("r1")
        await until(lambda: world.replicas[1].was_asked_to_leave)
        assert not world.replicas[0].was_asked_to_leave
