"""Shards, replicas and readers around one dispatcher, in time that stands still unless told to go on.

Replicas answer with a chain: each token is a hash of the weights and all tokens before it, so a stream made of two
weights, or with a token lost or doubled, is found out at once.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec

from cluster.errors import ApiError
from cluster.frames import (
    Beat,
    Cancel,
    Condemn,
    Ended,
    Enqueue,
    Failed,
    Frame,
    FromReplica,
    Grant,
    Move,
    Pulse,
    ReplicaUp,
    Submit,
    Tokens,
    Withdraw,
)
from cluster.generation import RequestContext
from cluster.streams.dispatcher import Dispatcher
from cluster.streams.watchdog import TICK_S
from engine.request import FinishReason, GenerateRequest, SamplingParams, TokenChunk
from tests.cluster.router_world import replica_info

Key = tuple[str, int]


def next_token(weights: str, token_ids: list[int]) -> int:
    return blake2b(repr((weights, token_ids)).encode(), digest_size=4).digest()[0]


def chain(weights: str, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(weights, tokens))
    return tokens[len(prompt) :]


class StillLoop(asyncio.SelectorEventLoop):
    """Its clock moves by `advance` only."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def do(self, event: Callable[..., object], *args: object) -> None:
        """Let something happen, and everybody do what there is to do then."""

        async def happen() -> None:
            event(*args)
            for _ in range(4):
                await asyncio.sleep(0)

        self.run_until_complete(happen())


@dataclass
class BoxShard:
    """A queue that grants when told to."""

    is_open: bool = True
    waiting: dict[Key, Enqueue] = field(default_factory=dict)
    granted: set[Key] = field(default_factory=set)
    ended: Counter[Key] = field(default_factory=Counter)
    condemned: list[bytes] = field(default_factory=list)

    def send(self, frame: Frame) -> None:
        match frame:
            case Enqueue():
                self.waiting[(frame.request_id, frame.attempt)] = frame
            case Withdraw():
                self.waiting.pop((frame.request_id, frame.attempt), None)
            case Ended():
                self.ended[(frame.request_id, frame.attempt)] += 1
            case Condemn():
                self.condemned.append(frame.digest)

    def close(self) -> None:
        self.is_open = False


class BoxReplica:
    """An engine and its connection; `wire` holds what is on its way to the gateway."""

    def __init__(self, replica_id: str, weights: str) -> None:
        self.replica_id, self.weights = replica_id, weights
        self.is_open = True
        self.is_frozen = False
        self.running: dict[Key, GenerateRequest] = {}
        self.outputs: dict[Key, list[int]] = {}
        self.submitted: list[Key] = []
        self.wire: deque[FromReplica] = deque()

    def send(self, frame: Frame) -> None:
        match frame:
            case Submit():
                key = (frame.request.request_id, frame.request.attempt)
                self.submitted.append(key)
                self.running[key] = frame.request
                self.outputs[key] = list(frame.request.output_token_ids)
            case Cancel():
                self.running.pop((frame.request_id, frame.attempt), None)

    def close(self) -> None:
        self.is_open = False

    def step(self) -> None:
        """One token for everybody."""
        chunks = []
        for key, request in list(self.running.items()):
            output = self.outputs[key]
            token = next_token(self.weights, request.prompt_token_ids + output)
            output.append(token)
            done = len(output) == request.sampling.max_tokens
            finish = FinishReason.LENGTH if done else None
            chunks.append(TokenChunk(*key, len(output) - 1, [token], finish=finish))
            if done:
                del self.running[key]
        self.wire.append(Tokens(1, chunks))

    def end_all(self, finish: FinishReason, error: str) -> None:
        chunks = [TokenChunk(*key, len(self.outputs[key]), [], finish=finish, error=error) for key in self.running]
        self.running.clear()
        self.wire.append(Tokens(1, chunks))

    def refuse_all(self) -> None:
        self.wire.extend(Failed(*key, "it drains", retryable=True) for key in self.running)
        self.running.clear()


@dataclass
class Reader:
    """What a client got: tokens, and how it ended."""

    request: GenerateRequest
    tokens: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    error: ApiError | None = None
    left: bool = False


class Fleet:
    """Two shards, three replicas (the third with other weights), any number of readers."""

    def __init__(self) -> None:
        self.loop = StillLoop()
        self.dispatcher = Dispatcher("g")
        self.shards = [BoxShard(), BoxShard()]
        self.replicas = [BoxReplica("r1", "r0"), BoxReplica("r2", "r0"), BoxReplica("r3", "new")]
        self.readers: dict[str, Reader] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.shard_was_lost = False
        self._old_wire: list[tuple[str, FromReplica]] = []
        for shard in (0, 1):
            self.connect_shard(shard)
        for replica in self.replicas:
            self.loop.do(self.dispatcher.on_replica, replica.replica_id, replica)

    def ask(self, prompt: list[int], max_tokens: int) -> None:
        name = f"q{len(self.readers)}"
        sampling = SamplingParams(max_tokens=max_tokens, seed=0)
        request = GenerateRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling)
        self.readers[name] = Reader(request)
        self.tasks[name] = self.loop.create_task(self._read(name))
        self.loop.do(int)

    async def _read(self, name: str) -> None:
        reader = self.readers[name]
        try:
            async for chunk in self.dispatcher.stream(reader.request, RequestContext(model="m", timeout_s=1e6)):
                assert chunk.index == len(reader.tokens), "tokens come in order, each once"
                reader.tokens += chunk.token_ids
                reader.finish = chunk.finish
        except ApiError as error:
            reader.error = error

    def leave(self, name: str) -> None:
        self.readers[name].left = True
        self.loop.do(self.tasks[name].cancel)

    # Shards

    def connect_shard(self, shard: int) -> None:
        self.shards[shard].waiting.clear()
        self.shards[shard].is_open = True
        self.loop.do(self.dispatcher.on_router, shard, self.shards[shard])
        for replica in self.replicas:
            info = replica_info(replica.replica_id)
            engine = msgspec.structs.replace(info.engine, weights_revision=replica.weights)
            self.loop.do(
                self.dispatcher.on_router_frame, shard, ReplicaUp(msgspec.structs.replace(info, engine=engine))
            )

    def lose_shard(self, shard: int) -> None:
        self.shards[shard].is_open = False
        self.shard_was_lost = True
        self.loop.do(self.dispatcher.on_router_lost, shard)

    def grant(self, shard: int, key: Key, replica_id: str, keep: bool = False) -> None:
        """`keep`: the shard will grant it once more."""
        if not keep:
            del self.shards[shard].waiting[key]
        self.shards[shard].granted.add(key)
        self.loop.do(self.dispatcher.on_router_frame, shard, Grant(*key, replica_id, 1.0))

    def move(self, shard: int, which: int) -> None:
        """The other shard has replicas with nothing to do."""
        waiting = list(self.shards[shard].waiting)
        if waiting and self.shards[shard].is_open:
            key = waiting[which % len(waiting)]
            del self.shards[shard].waiting[key]
            self.loop.do(self.dispatcher.on_router_frame, shard, Move(*key, 1 - shard))

    # Replicas

    def deliver(self, replica: BoxReplica, at: int = 0, keep: bool = False) -> None:
        frame = replica.wire[at]
        if not keep:
            del replica.wire[at]
        self.loop.do(self.dispatcher.on_replica_frame, replica.replica_id, frame)
        self._old_wire.append((replica.replica_id, frame))

    def deliver_old(self, index: int) -> None:
        """A frame that came before comes again."""
        if self._old_wire:
            replica_id, frame = self._old_wire[index % len(self._old_wire)]
            self.loop.do(self.dispatcher.on_replica_frame, replica_id, frame)

    def lose_replica(self, replica: BoxReplica, num_delivered: int) -> None:
        """Its process ends; some of what it had sent is still read. Another connection is open soon."""
        for _ in range(min(num_delivered, len(replica.wire))):
            self.deliver(replica)
        replica.wire.clear()
        replica.running.clear()
        replica.is_open = False
        self.loop.do(self.dispatcher.on_replica_lost, replica.replica_id)
        replica.is_open = True
        self.loop.do(self.dispatcher.on_replica, replica.replica_id, replica)

    def live(self, seconds: float) -> None:
        """Time goes on; who is not frozen beats."""
        for _ in range(round(seconds / TICK_S)):
            self.loop.advance(TICK_S)
            self.loop.do(self.dispatcher.on_tick, self.loop.now)
            for shard, link in enumerate(self.shards):
                if link.is_open:
                    self.loop.do(self.dispatcher.on_router_frame, shard, Pulse())
            for replica in self.replicas:
                if not replica.is_frozen:
                    self.loop.do(self.dispatcher.on_replica_frame, replica.replica_id, Beat(0, False, 0.0))

    def run_out(self) -> None:
        """Everything works from now on: all that is left comes to its end."""
        for shard, link in enumerate(self.shards):
            if not link.is_open:
                self.connect_shard(shard)
        for replica in self.replicas:
            replica.is_frozen = False
        for _ in range(200):
            self.live(0.2)
            for shard, link in enumerate(self.shards):
                for key, asked in list(link.waiting.items()):
                    weights = asked.weights_revision or "r0"
                    able = [replica for replica in self.replicas if replica.weights == weights]
                    chosen = next((r for r in able if r.replica_id not in asked.avoid), able[0])
                    self.grant(shard, key, chosen.replica_id)
            for replica in self.replicas:
                replica.step()
                while replica.wire:
                    self.deliver(replica)
            if all(task.done() for task in self.tasks.values()):
                return
        raise AssertionError("streams do not come to an end")

    def check(self) -> None:
        """What must hold at any time."""
        for reader in self.readers.values():
            prompt, length = reader.request.prompt_token_ids, reader.request.sampling.max_tokens
            whole = [chain(weights, prompt, length) for weights in ("r0", "new")]
            assert any(reader.tokens == tokens[: len(reader.tokens)] for tokens in whole), "a token was changed"
            assert reader.finish is None or reader.tokens in whole, "a clean end that is too short"

    def check_ended(self) -> None:
        """What must hold when all streams have ended."""
        assert self.dispatcher.num_in_flight == 0
        for name, task in self.tasks.items():
            reader = self.readers[name]
            assert task.done() and (reader.left or reader.error is not None or reader.finish is FinishReason.LENGTH)
        submitted = Counter(key for replica in self.replicas for key in replica.submitted)
        ended = sum((shard.ended for shard in self.shards), Counter[Key]())
        assert set(submitted.values()) <= {1}, "an attempt runs once"
        assert ended == submitted or (self.shard_was_lost and ended <= submitted), "each attempt is accounted for once"
        assert not any(replica.running for replica in self.replicas), "work that nobody waits for"
