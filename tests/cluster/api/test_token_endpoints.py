"""Tokenize, detokenize and the list of models."""

from typing import Any

import pytest

from tests.cluster.gateway_world import MODEL, client, gateway, local_generator, served_model

TOKENIZER = served_model().tokenizer


async def post(path: str, body: dict[str, Any], *names: str) -> tuple[int, Any]:
    models = dict.fromkeys(names or (MODEL,), served_model())
    async with local_generator() as generator, client(gateway(generator, models)) as http:
        response = await http.post(path, json=body)
        return response.status_code, response.json()


@pytest.mark.parametrize("path", ["/v1/tokenize", "/tokenize"])
async def test_a_prompt(path: str) -> None:
    status, body = await post(path, {"model": MODEL, "prompt": "The quick<|im_end|>", "return_token_strs": True})
    ids = TOKENIZER.encode_now("The quick<|im_end|>", True)
    assert (status, body["tokens"], body["count"], body["max_model_len"]) == (200, ids, len(ids), 2048)
    assert body["token_strs"] == ["The", "Ġquick", "<|im_end|>"]


async def test_messages_become_the_prompt_that_chat_uses() -> None:
    messages = [{"role": "user", "content": "<|im_end|>Hi"}]
    _, body = await post("/v1/tokenize", {"messages": messages})
    async with local_generator() as generator, client(gateway(generator)) as http:
        await http.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, "max_tokens": 1})
        assert generator.requests[0].prompt_token_ids == body["tokens"]
    _, unfinished = await post("/v1/tokenize", {"messages": messages, "add_generation_prompt": False})
    assert body["tokens"][: unfinished["count"]] == unfinished["tokens"]
    assert body["count"] > unfinished["count"]


@pytest.mark.parametrize("path", ["/v1/detokenize", "/detokenize"])
async def test_ids_become_text_again(path: str) -> None:
    text = "Ein schöner Tag<|im_end|>"
    assert await post(path, {"tokens": TOKENIZER.encode_now(text, True)}) == (200, {"prompt": text})
    assert await post(path, {"tokens": []}) == (200, {"prompt": ""})


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/tokenize", {}, "prompt"),
        ("/v1/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ("/v1/tokenize", {"messages": []}, "messages"),
        ("/v1/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/v1/detokenize", {"tokens": [-1]}, "tokens"),
        ("/v1/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/v1/detokenize", {"tokens": [1.5]}, "tokens[0]"),
        ("/v1/detokenize", {"tokens": "x"}, "tokens"),
        ("/v1/detokenize", {}, "tokens"),
    ],
)
async def test_refusals(path: str, body: dict[str, Any], param: str) -> None:
    status, answer = await post(path, body)
    assert (status, answer["error"]["param"]) == (400, param)


async def test_several_models_need_a_name() -> None:
    status, answer = await post("/v1/tokenize", {"prompt": "x"}, "a", "b/c")
    assert (status, answer["error"]["param"]) == (400, "model")
    assert (await post("/v1/tokenize", {"prompt": "x", "model": "b/c"}, "a", "b/c"))[0] == 200


async def test_models_are_listed_by_their_served_names() -> None:
    models = dict.fromkeys(("a",), served_model())
    async with local_generator() as generator, client(gateway(generator, models)) as http:
        listed = (await http.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [card["object"] for card in listed["data"]] == ["model"]
    assert listed["data"][0]["max_model_len"] == 2048
