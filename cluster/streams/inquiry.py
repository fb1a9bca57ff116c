"""Inquiry: one question to several router shards, of which any may have the answer or be lost meanwhile."""

import asyncio
from typing import Generic, TypeVar

Answer = TypeVar("Answer")

ANSWER_S = 2.0  #: a shard that has not answered by then is taken to have nothing


class Inquiry(Generic[Answer]):
    """The answers so far; with nobody to ask it is over at once."""

    def __init__(self, shards: set[int]) -> None:
        self._waits_for = set(shards)
        self.found: list[Answer] = []
        self.num_answers = 0
        self._done = asyncio.Event()
        if not shards:
            self._done.set()

    async def wait(self, answer_s: float | None = None) -> None:
        """Until all have answered or are gone, or their time is over: what has been found counts."""
        try:
            async with asyncio.timeout(ANSWER_S if answer_s is None else answer_s):
                await self._done.wait()
        except TimeoutError:
            pass

    def answered(self, shard: int, answer: Answer | None) -> None:
        """None: it has nothing."""
        self.num_answers += 1
        if answer is not None:
            self.found.append(answer)
        self.gone(shard)

    def gone(self, shard: int) -> None:
        """No answer will come from there."""
        self._waits_for.discard(shard)
        if not self._waits_for:
            self._done.set()
