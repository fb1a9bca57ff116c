"""A dispatcher whose router shards and replicas are the test itself."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from cluster.calls.record import CallRecord
from cluster.frames import Frame, Grant, ReplicaUp, Submit, Tokens
from cluster.generation import RequestContext
from cluster.streams.dispatcher import Dispatcher
from engine.request import FinishReason, GenerateRequest, SamplingParams, TokenChunk
from tests.cluster.router_world import replica_info

FrameT = TypeVar("FrameT", bound=Frame)


class RecordingLink:
    def __init__(self) -> None:
        self.sent: list[Frame] = []
        self.is_open = True

    def send(self, frame: Frame) -> None:
        self.sent.append(frame)

    def close(self) -> None:
        self.is_open = False

    def of_kind(self, kind: type[FrameT]) -> list[FrameT]:
        return [frame for frame in self.sent if isinstance(frame, kind)]


class Desk:
    """Shard 0 and the replicas r1, r2, ... Time passes only by `live`."""

    def __init__(self, num_replicas: int = 1, num_shards: int = 1) -> None:
        self.dispatcher = Dispatcher("g")
        self.shards = [RecordingLink() for _ in range(num_shards)]
        self.replicas = {f"r{number + 1}": RecordingLink() for number in range(num_replicas)}
        for shard, link in enumerate(self.shards):
            self.dispatcher.on_router(shard, link)
            for replica_id in self.replicas:
                self.dispatcher.on_router_frame(shard, ReplicaUp(replica_info(replica_id)))
        for replica_id, replica in self.replicas.items():
            self.dispatcher.on_replica(replica_id, replica)
        self.router, self.replica = self.shards[0], self.replicas.get("r1", RecordingLink())
        self.seen: list[TokenChunk] = []
        self._now = 0.0

    def ask(
        self,
        name: str = "q",
        attempt: int = 0,
        timeout_s: float = 10.0,
        prompt: tuple[int, ...] = (1,),
        record: CallRecord | None = None,
        **sampling: Any,
    ) -> asyncio.Task[None]:
        params = SamplingParams(**({"max_tokens": 9, "seed": 0} | sampling))
        request = GenerateRequest(request_id=name, prompt_token_ids=list(prompt), sampling=params, attempt=attempt)
        context = RequestContext(model="m", timeout_s=timeout_s, record=record)
        return asyncio.create_task(self._read(self.dispatcher.stream(request, context)))

    async def _read(self, stream: AsyncIterator[TokenChunk]) -> None:
        async for chunk in stream:
            self.seen.append(chunk)

    def grant(self, replica_id: str = "r1", name: str = "q", attempt: int = 0, shard: int = 0) -> None:
        self.dispatcher.on_router_frame(shard, Grant(name, attempt, replica_id, 1.0))

    def tokens(
        self,
        index: int,
        *ids: int,
        attempt: int = 0,
        finish: FinishReason | None = None,
        replica_id: str = "r1",
        name: str = "q",
        error: str = "",
    ) -> None:
        chunk = TokenChunk(name, attempt, index, list(ids), finish=finish, error=error)
        self.dispatcher.on_replica_frame(replica_id, Tokens(1, [chunk]))

    def lose(self, replica_id: str) -> None:
        self.replicas[replica_id].is_open = False
        self.dispatcher.on_replica_lost(replica_id)

    def live(self, seconds: float, tick_s: float = 0.1) -> None:
        """The gateway's time goes on, tick by tick."""
        for _ in range(round(seconds / tick_s)):
            self._now += tick_s
            self.dispatcher.on_tick(self._now)

    def submitted(self, replica_id: str) -> GenerateRequest:
        """The last request handed to that replica."""
        return self.replicas[replica_id].of_kind(Submit)[-1].request

    def seen_ids(self, name: str = "q") -> list[int]:
        return [token for chunk in self.seen if chunk.request_id == name for token in chunk.token_ids]


async def started(desk: Desk, **asked: Any) -> asyncio.Task[None]:
    """A request that runs on r1."""
    task = desk.ask(**asked)
    await asyncio.sleep(0)
    desk.grant("r1")
    return task
