"""The Python API gives what HTTP gives, and refuses what HTTP refuses."""

from contextlib import aclosing
from typing import Any

import pytest

from cluster.api.handle_api import HandleApi
from cluster.config import GatewayConfig
from cluster.errors import ApiError, InvalidRequest
from tests.cluster.gateway_world import MODEL, client, gateway, local_generator, served_model
from tests.cluster.local_engine import LocalGenerator

MESSAGES = [{"role": "user", "content": "Hi"}]


def handle(generator: LocalGenerator, *names: str) -> HandleApi:
    return HandleApi(dict.fromkeys(names or (MODEL,), served_model()), generator, GatewayConfig())


def without_ids(answer: dict[str, Any]) -> dict[str, Any]:
    """What does not differ from call to call (the second finds its prompt in the cache)."""
    return {key: value for key, value in answer.items() if key not in ("id", "created", "usage")}


async def test_it_answers_as_http_does() -> None:
    async with local_generator() as generator, client(gateway(generator)) as http:
        api = handle(generator)
        fields: dict[str, Any] = {"max_tokens": 5, "seed": 1, "logprobs": 1}
        over_http = (await http.post("/v1/completions", json={"model": MODEL, "prompt": "Hi", **fields})).json()
        assert without_ids(await api.generate("Hi", **fields)) == without_ids(over_http)
        ids = served_model().tokenizer.encode_now("Hi", True)
        assert without_ids(await api.generate(prompt_token_ids=ids, **fields)) == without_ids(over_http)
        chat = (
            await http.post("/v1/chat/completions", json={"model": MODEL, "messages": MESSAGES, "max_tokens": 5})
        ).json()
        assert without_ids(await api.chat(MESSAGES, max_tokens=5)) == without_ids(chat)


async def test_streams_join_to_the_whole() -> None:
    async with local_generator() as generator:
        api = handle(generator)
        whole = await api.generate("Hi", max_tokens=30)
        chunks = [chunk async for chunk in api.stream("Hi", max_tokens=30)]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
        answer = await api.chat(MESSAGES, max_tokens=30)
        deltas = [
            chunk["choices"][0]["delta"].get("content", "") async for chunk in api.chat_stream(MESSAGES, max_tokens=30)
        ]
        assert "".join(deltas) == answer["choices"][0]["message"]["content"]


async def test_closing_a_stream_frees_the_work() -> None:
    async with local_generator(step_delay_s=0.001) as generator:
        async with aclosing(handle(generator).stream("Hi", max_tokens=1000)) as chunks:
            await anext(chunks)
            assert generator.num_in_flight == 1
        assert generator.num_in_flight == 0


async def test_the_tenant_is_the_callers_word() -> None:
    async with local_generator() as generator:
        await handle(generator).generate("Hi", tenant="acme", max_tokens=1)
        assert generator.requests[0].cache_salt == "acme"


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "x", "prompt_token_ids": [1]}, "prompt"),
        ({"prompt_token_ids": []}, "prompt"),
        ({"prompt": "x", "temperature": float("nan")}, "temperature"),
        ({"prompt": "x", "temperature": float("inf")}, "temperature"),
        ({"prompt": "x", "max_token": 5}, "max_token"),
        ({"prompt": "\ud800"}, None),
    ],
)
async def test_refusals(arguments: dict[str, Any], param: str | None) -> None:
    async with local_generator() as generator:
        with pytest.raises(InvalidRequest) as refused:
            await handle(generator).generate(**arguments)
        assert refused.value.param == param


async def test_the_model_is_named_where_there_are_several() -> None:
    async with local_generator() as generator:
        api = handle(generator, "a", "b")
        with pytest.raises(InvalidRequest, match="several models"):
            await api.generate("Hi")
        assert (await api.generate("Hi", model="b", max_tokens=1))["choices"]
        with pytest.raises(ApiError, match="not served"):
            await api.generate("Hi", model="c")
