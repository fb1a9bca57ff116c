"""Several choices of one request: order, sharing of the prompt, failures, and freeing everything."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from cluster.api.choice import Choice, TextRules
from cluster.api.fan_out import run_choices
from cluster.errors import EngineFailed, Overloaded
from cluster.generation import RequestContext
from engine.request import FinishReason, GenerateRequest, SamplingParams, TokenChunk
from tests.cluster.gateway_world import ScriptedGenerator, served_model, until

CONTEXT = RequestContext(model="small")


def choices(prompt: list[int], count: int) -> list[Choice]:
    sampling = SamplingParams(max_tokens=4, seed=0)
    requests = [GenerateRequest(request_id=f"r-{i}", prompt_token_ids=prompt, sampling=sampling) for i in range(count)]
    return [Choice(i, request, served_model().tokenizer, TextRules()) for i, request in enumerate(requests)]


async def two_tokens(request: GenerateRequest) -> AsyncIterator[TokenChunk]:
    yield TokenChunk(request.request_id, 0, 0, [70])
    await asyncio.sleep(0)
    yield TokenChunk(request.request_id, 0, 1, [71], None, FinishReason.LENGTH)


@pytest.mark.parametrize("count", [1, 5])
async def test_every_choice_runs_to_its_end(count: int) -> None:
    generator = ScriptedGenerator(two_tokens)
    seen: dict[int, list[int]] = {}
    async for delta in run_choices(generator, choices([5], count), CONTEXT, 16):
        seen.setdefault(delta.choice, []).extend(delta.token_ids)
    assert seen == {index: [70, 71] for index in range(count)}
    assert generator.num_open == 0


@pytest.mark.parametrize(("length", "at_first"), [(16, 3), (17, 1)])
async def test_later_choices_of_a_long_prompt_wait_for_the_first_token(length: int, at_first: int) -> None:
    release = asyncio.Event()

    async def script(request: GenerateRequest) -> AsyncIterator[TokenChunk]:
        await release.wait()
        async for chunk in two_tokens(request):
            yield chunk

    generator = ScriptedGenerator(script)
    async with aclosing(run_choices(generator, choices([5] * length, 3), CONTEXT, 16)) as deltas:
        first = asyncio.ensure_future(anext(deltas))
        await asyncio.sleep(0.01)
        assert len(generator.requests) == at_first
        release.set()
        assert (await first).token_ids == [70]
        assert [delta.finish_reason async for delta in deltas].count("length") == 3
    assert len(generator.requests) == 3


@pytest.mark.parametrize("count", [1, 3])
async def test_the_first_failure_ends_all(count: int) -> None:
    async def script(request: GenerateRequest) -> AsyncIterator[TokenChunk]:
        yield TokenChunk(request.request_id, 0, 0, [70])
        if request.request_id == "r-0":
            raise Overloaded("full")
        await asyncio.Event().wait()

    generator = ScriptedGenerator(script)
    with pytest.raises(Overloaded):
        async for _ in run_choices(generator, choices([5], count), CONTEXT, 16):
            pass
    assert generator.num_open == 0


async def test_an_end_without_a_reason_is_a_failure() -> None:
    async def script(request: GenerateRequest) -> AsyncIterator[TokenChunk]:
        yield TokenChunk(request.request_id, 0, 0, [70])

    with pytest.raises(EngineFailed):
        async for _ in run_choices(ScriptedGenerator(script), choices([5], 1), CONTEXT, 16):
            pass


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_frees_everything(count: int, how: str) -> None:
    async def script(request: GenerateRequest) -> AsyncIterator[TokenChunk]:
        yield TokenChunk(request.request_id, 0, 0, [70])
        await asyncio.Event().wait()

    generator = ScriptedGenerator(script)
    deltas = run_choices(generator, choices([5], count), CONTEXT, 16)
    if how == "close":
        await anext(deltas)
        await deltas.aclose()
    else:

        async def read() -> None:
            async with aclosing(deltas):
                async for _ in deltas:
                    pass

        reading = asyncio.create_task(read())
        await until(lambda: generator.num_open == count)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert generator.num_open == 0
