"""Runs the choices of one API request and merges what they give, each choice's deltas in order."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from cluster.api.choice import Choice, Delta
from cluster.errors import EngineFailed
from cluster.generation import Generator, RequestContext


def run_choices(
    generator: Generator, choices: Sequence[Choice], context: RequestContext, block_size: int
) -> AsyncGenerator[Delta, None]:
    """Deltas until every choice has finished; the first failure ends all. Closing it frees all the work.

    Choices with the same prompt, when it is longer than a block, start after the first of them has given a
    token: then they find the prompt's blocks in the prefix cache.
    """
    if len(choices) == 1:
        return _run(generator, choices[0], context)
    return _run_many(generator, _by_prompt(choices, block_size), context)


async def _run_many(
    generator: Generator, groups: list[list[Choice]], context: RequestContext
) -> AsyncGenerator[Delta, None]:
    merged = _Merged(generator, context)
    try:
        for same_prompt in groups:
            merged.start(same_prompt)
        while merged.num_running:
            yield await merged.next()
    finally:
        await merged.close()


async def _run(generator: Generator, choice: Choice, context: RequestContext) -> AsyncGenerator[Delta, None]:
    chunks = generator.stream(choice.request, context)
    try:
        async for chunk in chunks:
            delta = choice.feed(chunk)
            yield delta
            if delta.finish_reason is not None:
                return
        raise EngineFailed("The engine ended this request without saying why.")
    finally:
        await _close(chunks)


async def _close(chunks: AsyncIterator[object]) -> None:
    """An iterator that is merely dropped would free its work only when it is collected."""
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()


def _by_prompt(choices: Sequence[Choice], block_size: int) -> list[list[Choice]]:
    """Choices to start one after another's first token; each list starts at once."""
    groups: list[list[Choice]] = []
    for choice in choices:
        prompt = choice.request.prompt_token_ids
        if groups and len(prompt) > block_size and groups[-1][0].request.prompt_token_ids is prompt:
            groups[-1].append(choice)
        else:
            groups.append([choice])
    return groups


class _Merged:
    """The choices' tasks and the queue they share."""

    def __init__(self, generator: Generator, context: RequestContext) -> None:
        self._generator, self._context = generator, context
        self._queue: asyncio.Queue[Delta | BaseException] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self.num_running = 0

    def start(self, choices: list[Choice]) -> None:
        """Start the first; the others follow its first token."""
        self.num_running += len(choices)
        self._begin(choices[0], choices[1:])

    def _begin(self, choice: Choice, followers: list[Choice]) -> None:
        self._tasks.append(asyncio.create_task(self._pump(choice, followers)))

    async def _pump(self, choice: Choice, followers: list[Choice]) -> None:
        try:
            async for delta in _run(self._generator, choice, self._context):
                for follower in followers:
                    self._begin(follower, [])
                followers = []
                self._queue.put_nowait(delta)
        except Exception as error:
            self._queue.put_nowait(error)

    async def next(self) -> Delta:
        """The next delta of any choice; raises the error of a choice that failed."""
        item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item
        if item.finish_reason is not None:
            self.num_running -= 1
        return item

    async def close(self) -> None:
        """End what still runs, and wait until its work is freed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
