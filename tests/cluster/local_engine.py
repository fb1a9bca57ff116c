"""A `Generator` over a real engine loop in this process, whose executor is the chain (no model, exact tokens)."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from cluster.generation import RequestContext
from engine.chain_executor import ChainExecutor
from engine.config import EngineConfig, EngineInfo
from engine.core import EngineCore
from engine.engine_loop import EngineLoop
from engine.errors import EngineDead
from engine.request import EngineLoad, GenerateRequest, TokenChunk
from engine.scheduler import Scheduler


def engine_info(vocab_size: int, **fields: Any) -> EngineInfo:
    """An engine's facts: blocks of 16 tokens, contexts of 2048."""
    facts: dict[str, Any] = {
        "model_path": "nowhere",
        "architecture": "Chain",
        "weights_revision": "r0",
        "dtype": "float32",
        "device": "cpu",
        "max_model_len": 2048,
        "block_size": 16,
        "num_blocks": 1024,
        "max_num_seqs": 64,
    }
    return EngineInfo(vocab_size=vocab_size, **(facts | fields))


class LocalGenerator:
    """One engine for every model name."""

    def __init__(self, info: EngineInfo, step_delay_s: float = 0.0) -> None:
        self.info: EngineInfo | None = info
        self.requests: list[GenerateRequest] = []
        self.contexts: list[RequestContext] = []
        self.load: EngineLoad | None = None
        executor = ChainExecutor(info.vocab_size, info.num_blocks, info.block_size, step_delay_s)
        self.scheduler = Scheduler(EngineConfig(block_size=info.block_size, max_num_seqs=info.max_num_seqs), info)
        self._loop = asyncio.get_running_loop()
        self._flights: dict[str, _Flight] = {}
        self._engine = EngineLoop(EngineCore(self.scheduler, executor), self._on_step, self._on_dead)
        self._engine.start()

    def model_info(self, model: str) -> EngineInfo | None:
        return self.info

    async def stream(self, request: GenerateRequest, context: RequestContext) -> AsyncIterator[TokenChunk]:
        self.requests.append(request)
        self.contexts.append(context)
        flight = self._flights[request.request_id] = _Flight(request.attempt)
        self._engine.submit(request)
        try:
            while True:
                chunk = await flight.next()
                if context.on_chunk is not None:
                    context.on_chunk(chunk, "r0")
                yield chunk
                if chunk.finish is not None:
                    return
        finally:
            del self._flights[request.request_id]
            self._engine.cancel(request.request_id)

    @property
    def num_in_flight(self) -> int:
        """Requests whose streams are open."""
        return len(self._flights)

    def close(self) -> None:
        self._engine.close()

    def _on_step(self, chunks: list[TokenChunk], load: EngineLoad) -> None:
        self._loop.call_soon_threadsafe(self._deliver, chunks, load)

    def _on_dead(self, error: EngineDead) -> None:
        pass

    def _deliver(self, chunks: list[TokenChunk], load: EngineLoad) -> None:
        self.load = load
        for chunk in chunks:
            flight = self._flights.get(chunk.request_id)
            if flight is not None and flight.attempt == chunk.attempt:
                flight.put(chunk)


class _Flight:
    """The chunks of one request that nobody has read yet."""

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self._chunks: deque[TokenChunk] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, chunk: TokenChunk) -> None:
        self._chunks.append(chunk)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> TokenChunk:
        while not self._chunks:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._chunks.popleft()
