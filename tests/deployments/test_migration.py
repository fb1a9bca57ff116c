"""Streams that outlive what computes them, over real sockets; the answers are the chain's."""

import asyncio
import socket
import threading
import time

import msgspec
import pytest

from cluster.errors import PoisonRequest
from cluster.frames import ReplicaUp, ToReplica
from deployments.transport import FrameServer
from engine.request import FinishReason, TokenChunk
from tests.cluster.router_world import replica_info
from tests.deployments.serving_world import SECRET, ServingWorld, chain, request, serving_world, until

PROMPTS = {f"q{i}": list(range(1, 4 + i % 40)) for i in range(30)}
LENGTH = 120


def tokens_of(chunks: list[TokenChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def ask_all(world: ServingWorld) -> "list[asyncio.Task[list[TokenChunk]]]":
    return [asyncio.create_task(world.generate(request(name, prompt, LENGTH))) for name, prompt in PROMPTS.items()]


async def all_exact(asked: "list[asyncio.Task[list[TokenChunk]]]") -> None:
    for prompt, chunks in zip(PROMPTS.values(), await asyncio.gather(*asked), strict=True):
        assert tokens_of(chunks) == chain(prompt, LENGTH)
        assert [chunk.index for chunk in chunks] == list(range(LENGTH))
        assert [chunk.finish for chunk in chunks] == [None] * (LENGTH - 1) + [FinishReason.LENGTH]


async def some_tokens(world: ServingWorld, replica: int, count: int = 100) -> None:
    await until(lambda: world.replicas[replica].core.scheduler.load().num_output_tokens >= count)


async def test_streams_go_on_when_the_sockets_of_a_replica_are_lost() -> None:
    async with serving_world(num_replicas=3, max_num_seqs=16, step_delay_s=0.002) as world:
        asked = ask_all(world)
        await some_tokens(world, 0)
        world.replicas[0].server.close()
        world.replicas[0].links.close()
        await all_exact(asked)
        assert world.num_running() == 0 and world.dispatcher.num_in_flight == 0


async def test_streams_go_on_when_an_engine_dies() -> None:
    async with serving_world(num_replicas=2, max_num_seqs=32, step_delay_s=0.002) as world:
        asked = ask_all(world)
        await some_tokens(world, 0)
        world.replicas[0].break_engine("the rank is gone")
        await until(lambda: world.replicas[0].died)
        world.replicas[0].links.close()
        await all_exact(asked)


async def test_streams_go_on_when_a_replica_loses_a_rank_and_it_serves_again_once_that_is_replaced() -> None:
    async with serving_world(num_replicas=2, max_num_seqs=32, step_delay_s=0.002) as world:
        asked, back = ask_all(world), threading.Event()
        await some_tokens(world, 0)
        world.replicas[0].lose_rank(back)
        await all_exact(asked)
        states = {r["replica_id"]: r for r in world.shard.router.status(time.monotonic())["replicas"]}
        assert (states["r0"]["comes_back"], states["r1"]["comes_back"]) == (True, False)
        world.replicas[1].server.leave()
        asked = ask_all(world)  # they wait for it
        back.set()
        await all_exact(asked)
        r0 = world.dispatcher.replicas["r0"]
        assert (r0.pids, r0.engine.num_rebuilds) == ([7, 8], 1)


async def test_a_request_that_costs_two_ranks_is_poison_and_the_replicas_serve_on() -> None:
    async with serving_world(num_replicas=2, step_delay_s=0.002) as world:
        back = threading.Event()
        back.set()
        for replica in world.replicas:
            replica.lose_rank(back)
        with pytest.raises(PoisonRequest):
            await world.generate(request("killer", [1, 2, 3], 20))
        assert tokens_of(await world.generate(request("other", [4, 5], 20))) == chain([4, 5], 20)
        assert not any(replica.died for replica in world.replicas)


async def test_streams_go_on_when_a_replica_hands_them_back_and_takes_no_more() -> None:
    async with serving_world(num_replicas=2, max_num_seqs=32, step_delay_s=0.002) as world:
        asked = ask_all(world)
        await some_tokens(world, 0)
        world.replicas[0].server.leave()
        world.replicas[0].engine.hand_back()
        await all_exact(asked)


@pytest.mark.parametrize("times", [0, 2], ids=["one token dropped", "one token doubled"])
async def test_a_replica_that_miscounts_tokens_changes_no_stream(times: int) -> None:
    async with serving_world(num_replicas=2, max_num_seqs=32, step_delay_s=0.002) as world:
        world.replicas[0].tamper = lambda chunks: [
            chunk for chunk in chunks for _ in range(times if chunk.index == 17 and chunk.attempt == 0 else 1)
        ]
        await all_exact(ask_all(world))


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence and standstill are noticed after 0.4 s here."""
    monkeypatch.setattr("cluster.streams.watchdog.SILENCE_S", 0.4)


@pytest.mark.usefixtures("short_patience")
async def test_a_frozen_replica_is_left_and_serves_again_when_it_wakes() -> None:
    async with serving_world(num_replicas=2, max_num_seqs=32, step_delay_s=0.005) as world:
        asked = ask_all(world)
        await some_tokens(world, 0)
        world.replicas[0].freeze()
        await all_exact(asked)
        world.replicas[0].wake()
        await until(lambda: world.usable() == {"r0", "r1"})
        await until(lambda: world.num_running() == 0)
        await until(lambda: "open" not in world.breakers())
        before = world.replicas[0].core.scheduler.load().num_output_tokens
        await all_exact(ask_all(world))
        assert world.replicas[0].core.scheduler.load().num_output_tokens > before


@pytest.mark.usefixtures("short_patience")
async def test_a_stuck_engine_is_left_though_its_replica_speaks() -> None:
    async with serving_world(num_replicas=2, max_num_seqs=32, step_delay_s=0.005) as world:
        asked = ask_all(world)
        await some_tokens(world, 0)
        with world.replicas[0].stuck():
            await all_exact(asked)
            assert world.usable() == {"r1"}
        await until(lambda: world.usable() == {"r0", "r1"})


@pytest.mark.usefixtures("short_patience")
async def test_a_long_step_that_shows_progress_is_waited_for() -> None:
    async with serving_world(num_replicas=2) as world:
        for replica in world.replicas:
            replica.slow_down(num_parts=10, part_s=0.1)
        chunks = await world.generate(request("q", [1, 2], 1))
        assert tokens_of(chunks) == chain([1, 2], 1)
        assert chunks[0].attempt == 0


async def test_a_broken_connection_is_dialled_anew_and_the_stream_goes_on_where_it_was() -> None:
    async with serving_world(step_delay_s=0.002) as world:
        asked = asyncio.create_task(world.generate(request("q", [1, 2], LENGTH)))
        await some_tokens(world, 0, 20)
        for connection in list(world.replicas[0].server._server.connections):
            connection.close()
        chunks = await asked
        assert tokens_of(chunks) == chain([1, 2], LENGTH)
        assert {chunk.attempt for chunk in chunks} == {0, 1}


async def test_a_replica_that_cannot_be_reached_at_first_is_dialled_again() -> None:
    async with serving_world(num_replicas=1) as world:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            info = replica_info("late")
            port = closed.getsockname()[1]
        up = ReplicaUp(msgspec.structs.replace(info, port=port))
        next(iter(world.shard.gateways.values())).send(up)
        await asyncio.sleep(0.05)
        assert world.usable() == {"r0"}
        late = FrameServer(ToReplica, SECRET, lambda hello, connection: Silent())
        await late.listen("127.0.0.1", port)
        await until(lambda: world.usable() == {"r0", "late"})
        late.close()


class Silent:
    """A peer that listens and says nothing."""

    def on_frame(self, frame: object) -> None:
        pass

    def on_lost(self) -> None:
        pass
