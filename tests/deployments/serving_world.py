"""A whole Manta without Ray: router shard, engines on the chain executor, and a gateway's dispatcher, over real TCP."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import msgspec

from cluster.config import RouterConfig
from cluster.frames import ReplicaInfo
from cluster.generation import RequestContext
from cluster.metrics.gateway_metrics import GatewayMetrics
from cluster.streams.dispatcher import Dispatcher
from cluster.streams.stream_copies import StreamCopies
from deployments.gateway_links import GatewayLinks
from deployments.replica import Replica as ProductionReplica
from deployments.router_link import RouterAddress, Shards
from deployments.router_shard import RouterShard
from engine.chain_executor import ChainExecutor, next_chain_token
from engine.chain_startup import VOCAB_SIZE, start_chain_engine
from engine.config import ChainConfig, EngineConfig, EngineInfo
from engine.core import EngineCore
from engine.errors import EngineDead, RankLost
from engine.request import EngineLoad, GenerateRequest, SamplingParams, TokenChunk
from engine.step import StepPlan, StepResult

SECRET = b"a secret of the tests"
HOST = "127.0.0.1"
VOCAB = VOCAB_SIZE


def chain_engine(
    step_delay_s: float = 0.0, max_num_seqs: int = 8, num_blocks: int = 256
) -> tuple[EngineCore, EngineInfo]:
    config = EngineConfig(
        block_size=16, max_num_seqs=max_num_seqs, max_batched_tokens=256, kv_cache_tokens=16 * num_blocks,
        max_model_len=2048,
    )  # fmt: skip
    return start_chain_engine(config, ChainConfig(step_s=step_delay_s))


def _lose_rank(plan: StepPlan) -> StepResult:
    raise RankLost(1, plan.step, "it was killed")


class _Rebuilder:
    """Of a replica on the chain executor."""

    def __init__(self, replica: "Replica", back: threading.Event) -> None:
        self._replica, self._back = replica, back

    def look(self) -> None:
        """All are there."""

    def may_begin(self, now: float) -> bool:
        return True

    def rebuild(self, lost: RankLost) -> EngineInfo:
        assert self._back.wait(20.0)
        replica = self._replica
        replica.core.executor = ChainExecutor(VOCAB_SIZE, replica.info.num_blocks, replica.info.block_size, 0.002)
        replica.info = msgspec.structs.replace(replica.info, rank_pids=(7, 8), num_rebuilds=1)
        return replica.info


class Replica(ProductionReplica):
    """One that tests do things to."""

    def __init__(self, name: str, core: EngineCore, info: EngineInfo) -> None:
        super().__init__(core, SECRET, self._on_dead)
        self.name, self.info = name, info
        self.died = self.was_asked_to_leave = False
        self._held: list[tuple[list[TokenChunk], EngineLoad]] | None = None  #: while it is frozen
        self.tamper: Callable[[list[TokenChunk]], list[TokenChunk]] = lambda chunks: chunks

    def _on_step(self, chunks: list[TokenChunk], load: EngineLoad) -> None:
        self._loop.call_soon_threadsafe(self._say, chunks, load)

    def _say(self, chunks: list[TokenChunk], load: EngineLoad) -> None:
        if self._held is not None:
            self._held.append((chunks, load))
        else:
            self.server.on_step(self.tamper(chunks), load)

    def _on_dead(self, error: EngineDead) -> None:
        self.died = True

    def break_engine(self, why: str) -> None:
        """The next step fails."""

        def fail(plan: StepPlan) -> StepResult:
            raise RuntimeError(why)

        self.core.executor.execute = fail  # type: ignore[method-assign]

    def lose_rank(self, back: threading.Event) -> None:
        """The next step loses a rank; once `back` is set the engine is whole, and empty."""
        self.core.rebuilder = _Rebuilder(self, back)
        self.core.executor.execute = _lose_rank  # type: ignore[method-assign]

    @contextmanager
    def stuck(self) -> Iterator[None]:
        """The step that begins next does not end before the context does."""
        execute, go_on = self.core.executor.execute, threading.Event()

        def hang(plan: StepPlan) -> StepResult:
            go_on.wait()
            return execute(plan)

        self.core.executor.execute = hang  # type: ignore[method-assign]
        try:
            yield
        finally:
            self.core.executor.execute = execute  # type: ignore[method-assign]
            go_on.set()

    def slow_down(self, num_parts: int, part_s: float) -> None:
        """Each step takes so many parts of such a length, and shows each."""
        execute = self.core.executor.execute

        def step_by_step(plan: StepPlan) -> StepResult:
            for _ in range(num_parts):
                time.sleep(part_s)
                self.core.progress.tick()
            return execute(plan)

        self.core.executor.execute = step_by_step  # type: ignore[method-assign]

    def freeze(self) -> None:
        """As SIGSTOP would: nothing is read, nothing is said; the engine's steps wait to be told of."""
        assert self._timer is not None
        self._timer.cancel()
        for connection in self.server._server.connections:
            assert connection._transport is not None
            connection._transport.pause_reading()
        self._held = []

    def wake(self) -> None:
        """Go on where it was, late as it is."""
        held, self._held = self._held or [], None
        for chunks, load in held:
            self._say(chunks, load)
        for connection in self.server._server.connections:
            assert connection._transport is not None
            connection._transport.resume_reading()
        assert self.links is not None
        self._timer = asyncio.create_task(self._beat(self.links, None))

    def on_drain(self) -> None:
        """A shard asks it to leave."""
        self.was_asked_to_leave = True

    async def join(self, world: "ServingWorld", home: int = 0) -> None:
        """Start, at home in that shard of the world."""
        me = ReplicaInfo(self.name, "m", HOST, 0, [1], "host", self.info)
        await self.start(me, world.addresses, home, self.on_drain)


@dataclass
class ServingWorld:
    shards: list[RouterShard]
    ports: list[int]
    dispatcher: Dispatcher = field(default_factory=lambda: Dispatcher("gateway"))
    metrics: GatewayMetrics = field(init=False)
    links: GatewayLinks = field(init=False)
    replicas: list[Replica] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.metrics = GatewayMetrics(self.dispatcher)

    @property
    def addresses(self) -> Shards:
        return Shards(len(self.shards), self.find_router, SECRET)

    @property
    def shard(self) -> RouterShard:
        """The first one."""
        return self.shards[0]

    async def find_router(self, number: int) -> RouterAddress:
        if not self.ports[number]:
            raise ConnectionError("the shard is down")
        return RouterAddress(HOST, self.ports[number], SECRET)

    async def start_router(self, number: int = 0) -> None:
        """A new one that knows nothing takes the shard's place, on another port."""
        self.shards[number] = RouterShard(RouterConfig(shards=len(self.shards)), SECRET, number)
        self.ports[number] = await self.shards[number].start(HOST)
        self.shards[number].join(self.find_router)

    def stop_router(self, number: int = 0) -> None:
        """Lose the shard with all it knew."""
        self.shards[number].close()
        self.ports[number] = 0

    async def restart_router(self) -> None:
        self.stop_router()
        await self.start_router()

    async def generate(self, request: GenerateRequest, timeout_s: float = 20.0) -> list[TokenChunk]:
        context = RequestContext(model="m", timeout_s=timeout_s)
        return [chunk async for chunk in self.dispatcher.stream(request, context)]

    def usable(self) -> set[str]:
        """Replicas that the gateway is connected to and has not left."""
        return {name for name in self.dispatcher.replicas if self.dispatcher._peers.usable(name) is not None}

    def breakers(self) -> list[str]:
        """The state of each replica's circuit breaker, at the first shard."""
        return [replica["breaker"] for replica in self.shard.router.status(time.monotonic())["replicas"]]

    def num_running(self) -> int:
        loads = [replica.core.scheduler.load() for replica in self.replicas]
        return sum(load.num_running + load.num_waiting for load in loads)


@asynccontextmanager
async def serving_world(num_replicas: int = 1, num_shards: int = 1, **engine: float) -> AsyncIterator[ServingWorld]:
    """Ready when every replica is connected to the gateway."""
    unstarted = [RouterShard(RouterConfig(), SECRET)] * num_shards
    world = ServingWorld(unstarted, [0] * num_shards)
    for number in range(num_shards):
        await world.start_router(number)
    links = world.links = GatewayLinks(
        world.dispatcher, StreamCopies(60.0, num_shards), [world.metrics.scrapes], world.addresses
    )
    try:
        for number in range(num_replicas):
            replica = Replica(f"r{number}", *chain_engine(**engine))  # type: ignore[arg-type]
            world.replicas.append(replica)
            await replica.join(world, home=number % num_shards)
        await until(lambda: len(links.connections) == num_replicas)
        yield world
    finally:
        links.close()
        for replica in world.replicas:
            assert replica.close()
        for shard in world.shards:
            shard.close()


async def until(condition: object, timeout_s: float = 5.0) -> None:
    """Wait for a condition that another task or thread brings about."""
    assert callable(condition)
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition may be another thread's
            await asyncio.sleep(0.002)


def request(name: str, prompt: list[int], max_tokens: int = 20, **sampling: object) -> GenerateRequest:
    params = SamplingParams(max_tokens=max_tokens, seed=1, **sampling)  # type: ignore[arg-type]
    return GenerateRequest(request_id=name, prompt_token_ids=prompt, sampling=params)


def chain(prompt: list[int], count: int) -> list[int]:
    """What the chain engine answers: the oracle."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_chain_token(tokens, VOCAB))
    return tokens[len(prompt) :]
