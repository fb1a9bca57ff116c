"""The OpenAPI document is true: it lists what is accepted, and real answers fit it."""

import json
from typing import Any

import jsonschema
import pytest

from cluster.api.schema_chat import ChatRequest
from cluster.api.schema_completions import CompletionRequest
from tests.cluster.gateway_world import MODEL, client, gateway, local_generator
from tests.cluster.resume_world import WITH_IDS, Shard, a_gateway, events_of, uneven_chain

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
COMPLETION: dict[str, Any] = {"model": MODEL, "prompt": "Hi", "max_tokens": 3}
RICH: dict[str, Any] = {"return_token_ids": True, "n": 2, "stop": ["x"]}


async def fetch_document() -> dict[str, Any]:
    async with local_generator() as generator, client(gateway(generator)) as http:
        document: dict[str, Any] = (await http.get("/openapi.json")).json()
        return document


def check(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def chunk_schema(operation: dict[str, Any]) -> dict[str, Any]:
    """What the `data` of an event holds: no validator looks into a text."""
    event = operation["responses"]["200"]["content"]["text/event-stream"]["schema"]
    schema: dict[str, Any] = event["properties"]["data"]["anyOf"][-1]["contentSchema"]
    return schema


async def test_it_lists_every_field() -> None:
    document = await fetch_document()
    assert document["openapi"] == "3.1.0"
    for body in (ChatRequest, CompletionRequest):
        schema = document["components"]["schemas"][body.__name__]
        assert set(schema["properties"]) == set(body.__struct_fields__)
        assert schema["additionalProperties"] is False
        assert "model" in schema["required"]
    assert document["components"]["schemas"]["CompletionRequest"]["properties"]["n"]["anyOf"][0]["minimum"] == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | RICH | {"logprobs": True, "top_logprobs": 2}),
        ("/v1/completions", COMPLETION),
        ("/v1/completions", COMPLETION | RICH | {"logprobs": 2, "echo": True}),
        ("/v1/tokenize", {"prompt": "Hi", "return_token_strs": True}),
        ("/tokenize", {"messages": CHAT["messages"]}),
        ("/v1/detokenize", {"tokens": [70]}),
    ],
)
async def test_answers_fit(path: str, body: dict[str, Any]) -> None:
    document = await fetch_document()
    operation = document["paths"][path]["post"]
    check(document, operation["requestBody"]["content"]["application/json"]["schema"], body)
    async with local_generator() as generator, client(gateway(generator)) as http:
        whole = await http.post(path, json=body)
        assert whole.status_code == 200, whole.text
        content = operation["responses"]["200"]["content"]
        check(document, content["application/json"]["schema"], whole.json())
        wrong = await http.post(path, json=body | {"unheard_of": 1})
        check(document, operation["responses"]["400"]["content"]["application/json"]["schema"], wrong.json())
        if "text/event-stream" not in content:
            return
        streamed = await http.post(path, json=body | {"stream": True, "stream_options": {"include_usage": True}})
        events = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: ")]
        assert len(events) > 3
        for event in events[:-1]:
            check(document, chunk_schema(operation), json.loads(event))


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/small", "/health", "/version"])
async def test_what_is_fetched_fits(path: str) -> None:
    document = await fetch_document()
    operation = document["paths"][path.replace("/small", "/{model}")]["get"]
    async with local_generator() as generator, client(gateway(generator)) as http:
        answer = await http.get(path)
    check(document, operation["responses"]["200"]["content"]["application/json"]["schema"], answer.json())


async def test_the_page_fetches_nothing_from_elsewhere() -> None:
    async with local_generator() as generator, client(gateway(generator)) as http:
        page = await http.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        assert "//" not in page.text
        for name in ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"):
            assert f'"docs/{name}"' in page.text
            assert len((await http.get(f"/docs/{name}")).content) > 500


async def test_events_of_a_resumed_stream_fit() -> None:
    document = await fetch_document()
    operation = document["paths"]["/v1/streams/{stream}"]["get"]
    assert [parameter["name"] for parameter in operation["parameters"]] == ["stream", "Last-Event-ID"]
    schema = chunk_schema(operation)
    gateway = a_gateway("a", uneven_chain(), Shard())
    async with gateway.client() as http:
        for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
            begun = await http.post(path, json=body | {"stream": True}, headers=WITH_IDS)
            resumed = await http.get(f"/v1/streams/{events_of(begun.text)[0].json['id']}")
            for event in events_of(resumed.text):
                check(document, schema, event.json)
