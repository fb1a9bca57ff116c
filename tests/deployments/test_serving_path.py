"""Requests through dispatcher, router shard and replicas over real sockets; the answers are the chain's."""

import asyncio

import pytest

from cluster.errors import DeadlineExceeded, EngineFailed
from cluster.generation import RequestContext
from deployments.replica_links import ReplicaLinks
from engine.request import FinishReason
from tests.deployments.serving_world import chain, request, serving_world, until


def tokens_of(chunks: list[object]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]  # type: ignore[attr-defined]


async def test_many_streams_over_two_replicas_are_exact() -> None:
    async with serving_world(num_replicas=2) as world:
        prompts = {f"q{i}": list(range(1, 4 + i % 40)) for i in range(60)}
        answers = await asyncio.gather(*(world.generate(request(n, p, 30)) for n, p in prompts.items()))
        for prompt, chunks in zip(prompts.values(), answers, strict=True):
            assert tokens_of(chunks) == chain(prompt, 30)
            assert chunks[-1].finish is FinishReason.LENGTH
            assert [chunk.index for chunk in chunks] == sorted({chunk.index for chunk in chunks})
        assert world.num_running() == 0 and world.dispatcher.num_in_flight == 0
        both = [replica.core.scheduler.load().num_output_tokens for replica in world.replicas]
        assert min(both) > 0, f"one replica did all the work: {both}"


async def test_waiting_happens_in_the_shard_not_in_the_replica() -> None:
    async with serving_world(max_num_seqs=2, step_delay_s=0.002) as world:
        asked = [asyncio.create_task(world.generate(request(f"q{i}", [1, 2, i], 10))) for i in range(10)]
        most_waiting = 0
        while not all(task.done() for task in asked):
            load = world.replicas[0].core.scheduler.load()
            most_waiting = max(most_waiting, load.num_waiting)
            await asyncio.sleep(0.001)
        assert [tokens_of(task.result()) for task in asked] == [chain([1, 2, i], 10) for i in range(10)]
        assert most_waiting <= 2, "requests queued inside the replica"


async def test_a_reader_that_leaves_frees_the_work() -> None:
    async with serving_world(step_delay_s=0.002) as world:
        stream = world.dispatcher.stream(request("q", [1, 2, 3], 2000), RequestContext(model="m"))
        async for chunk in stream:
            if chunk.index > 3:
                break
        assert world.num_running() == 1
        await stream.aclose()  # type: ignore[attr-defined]
        await until(lambda: world.num_running() == 0, timeout_s=1.0)


async def test_a_reader_that_leaves_while_waiting_leaves_the_queue() -> None:
    async with serving_world(max_num_seqs=1, step_delay_s=0.002) as world:
        first = asyncio.create_task(world.generate(request("first", [1], 200)))
        await until(lambda: world.num_running() == 1)
        second = asyncio.create_task(world.generate(request("second", [2], 5)))
        await until(lambda: len(world.shard.router.queues()["m"]) == 1)
        second.cancel()
        await until(lambda: len(world.shard.router.queues()["m"]) == 0, timeout_s=1.0)
        assert len(tokens_of(await first)) == 200


async def test_a_deadline_ends_a_waiting_and_a_running_request() -> None:
    async with serving_world(max_num_seqs=1, step_delay_s=0.002) as world:
        running = asyncio.create_task(world.generate(request("running", [1], 2000), timeout_s=0.3))
        await until(lambda: world.num_running() == 1)
        with pytest.raises(DeadlineExceeded):
            await world.generate(request("waiting", [2], 5), timeout_s=0.1)
        with pytest.raises(DeadlineExceeded):
            await running
        await until(lambda: world.num_running() == 0, timeout_s=1.0)


async def test_without_any_replica_a_stream_is_held_to_its_deadline_and_never_ends_cleanly() -> None:
    async with serving_world(step_delay_s=0.002) as world:
        asked = asyncio.create_task(world.generate(request("q", [1], 2000), timeout_s=0.4))
        await until(lambda: world.num_running() == 1)
        world.replicas[0].server.close()
        with pytest.raises(DeadlineExceeded):
            await asked


async def test_a_restarted_router_is_whole_again() -> None:
    async with serving_world(max_num_seqs=1, step_delay_s=0.002) as world:
        first = asyncio.create_task(world.generate(request("first", [1], 100)))
        await until(lambda: world.num_running() == 1)
        second = asyncio.create_task(world.generate(request("second", [2], 5)))
        await until(lambda: len(world.shard.router.queues()["m"]) == 1)
        await world.restart_router()
        assert tokens_of(await first) == chain([1], 100)
        assert tokens_of(await second) == chain([2], 5)


async def test_a_replica_that_connects_anew_stays_known_when_its_old_connection_ends() -> None:
    async with serving_world() as world:
        replica, old = world.replicas[0], world.replicas[0].links
        replica.links = ReplicaLinks(replica.name, replica.server, world.addresses, 0, replica.on_drain)
        await until(lambda: len(world.shard.router.replicas()) == 1)
        await asyncio.sleep(0.05)
        old.close()
        await asyncio.sleep(0.05)
        assert tokens_of(await world.generate(request("q", [1], 3))) == chain([1], 3)


async def test_the_engines_refusal_comes_back() -> None:
    async with serving_world() as world:
        with pytest.raises(EngineFailed, match="the model holds 2048"):
            await world.generate(request("q", [1], 5000))
        assert tokens_of(await world.generate(request("r", [1], 3))) == chain([1], 3)
