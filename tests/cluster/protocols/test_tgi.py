"""Text Generation Inference's API, through the client that people use for it."""

import asyncio
import json
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import OverloadedError, ValidationError

from cluster.errors import EngineFailed, Overloaded
from cluster.generation import RequestContext
from engine.request import FinishReason, GenerateRequest, TokenChunk
from tests.cluster.gateway_world import MODEL, ScriptedGenerator, client, gateway, live_server, local_generator

PROMPT = "The sea is"


async def asked(generator: Any, **parameters: Any) -> Any:
    """In a thread: the client blocks."""
    async with live_server(gateway(generator)) as address:
        http = InferenceClient(model=address)
        return await asyncio.to_thread(lambda: http.text_generation(PROMPT, **parameters))


async def streamed(generator: Any, **parameters: Any) -> list[Any]:
    async with live_server(gateway(generator)) as address:
        http = InferenceClient(model=address)
        return await asyncio.to_thread(lambda: list(http.text_generation(PROMPT, stream=True, **parameters)))


async def test_text_whole_and_streamed_are_the_same() -> None:
    async with local_generator() as generator:
        whole = await asked(generator, max_new_tokens=12)
        pieces = await streamed(generator, max_new_tokens=12)
        full = await asked(generator, max_new_tokens=12, return_full_text=True)
    assert whole
    assert "".join(pieces) == whole
    assert full == PROMPT + whole


async def test_details() -> None:
    async with local_generator() as generator:
        found = await asked(
            generator,
            max_new_tokens=6,
            details=True,
            decoder_input_details=True,
            top_n_tokens=1,
            seed=7,
            temperature=0.9,
        )
        events = await streamed(generator, max_new_tokens=6, details=True, seed=7, temperature=0.9)
    assert (found.details.finish_reason, found.details.generated_tokens, found.details.seed) == ("length", 6, 7)
    assert "".join(token.text for token in found.details.tokens) == found.generated_text
    assert all(token.logprob <= 0 for token in found.details.tokens)
    assert [top[0]["id"] for top in found.details.top_tokens] == [token.id for token in found.details.tokens]
    assert found.details.prefill[0].logprob is None
    assert all(token.logprob <= 0 for token in found.details.prefill[1:])
    assert [event.index for event in events] == list(range(1, 7))
    assert [event.generated_text for event in events[:-1]] == [None] * 5
    assert events[-1].generated_text == found.generated_text
    assert events[-1].details.input_length == len(found.details.prefill)


async def test_greedy_unless_something_asks_for_more_and_the_last_tokens_of_a_long_prompt() -> None:
    async with local_generator() as generator:
        spied = ScriptedGenerator(lambda request: generator.stream(request, RequestContext(model=MODEL)))
        async with client(gateway(spied)) as http:
            for parameters in ({}, {"do_sample": True}, {"top_p": 0.5}, {"temperature": 0.3}, {"truncate": 2}):
                answer = await http.post("/generate", json={"inputs": PROMPT, "parameters": parameters})
                assert answer.status_code == 200, answer.text
    assert [request.sampling.temperature for request in spied.requests] == [0.0, 1.0, 1.0, 0.3, 0.0]
    assert spied.requests[-1].prompt_token_ids == spied.requests[0].prompt_token_ids[-2:]
    assert spied.requests[0].sampling.max_tokens == 100


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"watermark": True}, "watermark"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 9}, "stop"),
        ({"temperature": 99.0}, "temperature"),
        ({"max_new_tokens": 10**6}, "max_tokens"),
    ],
)
async def test_what_is_wrong_is_said_as_its_clients_know_it(parameters: dict[str, Any], said: str) -> None:
    async with local_generator() as generator:
        with pytest.raises(ValidationError, match=said):
            await asked(generator, **parameters)


async def overloaded(request: GenerateRequest) -> Any:
    raise Overloaded("too many", None, 3.0)
    yield


async def breaking(request: GenerateRequest) -> Any:
    yield TokenChunk(request.request_id, 0, 0, [70], [])
    raise EngineFailed("no more")


async def test_overload_and_a_stream_that_breaks() -> None:
    with pytest.raises(OverloadedError):
        await asked(ScriptedGenerator(overloaded), max_new_tokens=3)
    async with client(gateway(ScriptedGenerator(breaking))) as http:
        answer = await http.post("/generate_stream", json={"inputs": PROMPT})
    last = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last == {"error": "no more", "error_type": "generation"}
    assert 'generated_text":"' not in answer.text


async def stop_at_once(request: GenerateRequest) -> Any:
    yield TokenChunk(request.request_id, 0, 0, [], None, FinishReason.LENGTH)


async def test_the_last_event_has_the_text_whatever_came_before() -> None:
    async with client(gateway(ScriptedGenerator(stop_at_once))) as http:
        answer = await http.post("/generate_stream", json={"inputs": PROMPT})
        info = (await http.get("/info")).json()
    assert json.loads(answer.text.strip().removeprefix("data: "))["generated_text"] == ""
    assert (info["model_id"], info["max_input_tokens"]) == (MODEL, info["max_total_tokens"] - 1)
