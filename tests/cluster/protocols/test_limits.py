"""What a client controls has its limits whichever way it comes, and no prompt gets into a log."""

import json
import logging
from typing import Any

import pytest

from tests.cluster.gateway_world import MODEL, client, gateway, local_generator

CANARY = "zebra-quartz-7731"
DEEP = "[" * 100_000
BIASES = {str(token_id): 1 for token_id in range(301)}


def tgi(**parameters: Any) -> tuple[str, Any]:
    return "/generate", {"inputs": CANARY, "parameters": parameters}


def kserve(**parameters: Any) -> tuple[str, Any]:
    return f"/v2/models/{MODEL}/generate", {"text_input": CANARY, "parameters": parameters}


def infer(prompts: list[Any], **more: Any) -> tuple[str, Any]:
    tensors = [{"name": "text_input", "shape": [len(prompts)], "datatype": "BYTES", "data": prompts}]
    tensors += [{"name": name, "shape": [1], "datatype": "BYTES", "data": [value]} for name, value in more.items()]
    return f"/v2/models/{MODEL}/infer", {"inputs": tensors}


def completion(**fields: Any) -> tuple[str, Any]:
    return "/v1/completions", {"model": MODEL, "prompt": CANARY, **fields}


def chat(*contents: Any, **fields: Any) -> tuple[str, Any]:
    messages = [{"role": "user", "content": content} for content in contents]
    return "/v1/chat/completions", {"model": MODEL, "messages": messages, **fields}


REFUSED = [
    tgi(max_new_tokens=2**31),
    tgi(max_new_tokens=2**70),
    tgi(max_new_tokens=0),
    tgi(temperature=0),
    tgi(temperature=2.0001),
    tgi(top_n_tokens=6),
    tgi(seed=-1),
    tgi(stop=["x"] * 5),
    tgi(stop=["x" * 10_240]),
    tgi(repetition_penalty=11),
    ("/generate", {"inputs": f"{CANARY} " * 4000}),
    ("/generate", {"inputs": ""}),
    kserve(max_tokens=2**63),
    kserve(temperature=-1),
    kserve(logprobs=21),
    kserve(logit_bias=BIASES),
    kserve(logit_bias={"99999": 1}),
    kserve(stop=[""]),
    kserve(seed=2**63),
    kserve(n=2),
    infer([CANARY] * 129),
    infer([CANARY] * 4097),
    infer([CANARY], sampling_parameters=DEEP),
    infer([CANARY], sampling_parameters='{"temperature": NaN}'),
    infer([CANARY], sampling_parameters='{"logit_bias": {"1": 1e999}}'),
    infer([]),
    infer([5]),
    completion(n=129),
    completion(logit_bias=BIASES),
    completion(logprobs=21),
    completion(metadata=json.loads("[" * 900 + "]" * 900), temperature=9),
    chat(*["x"] * 4097),
    chat(CANARY, top_logprobs=21, logprobs=True),
    chat(CANARY, temperature=2.0001),
    chat(f"{CANARY} " * 4000),
    ("/v1/tokenize", {"messages": [{"role": "user", "content": CANARY}] * 4097}),
    ("/v1/detokenize", {"tokens": [2**70]}),
    ("/v1/detokenize", {"tokens": [5] * 100_000 + [-1]}),
]


@pytest.mark.parametrize(("path", "body"), REFUSED, ids=str)
async def test_what_is_too_much_is_refused_before_it_waits_for_anything(path: str, body: Any) -> None:
    async with local_generator() as generator, client(gateway(generator)) as http:
        answer = await http.post(path, json=body)
        assert answer.status_code == (422 if path == "/generate" else 400), answer.text
        assert "Traceback" not in answer.text and ".py" not in answer.text
        assert len(answer.content) < 1000
        assert generator.requests == []


@pytest.mark.parametrize("path", ["/v1/completions", "/generate", f"/v2/models/{MODEL}/infer", "/tokenize"])
@pytest.mark.parametrize(
    "raw", [DEEP.encode(), b'{"a":' + DEEP.encode(), b'{"inputs": "\\ud800"}', b'{"inputs": "\xff"}', b"\xef\xbb\xbf{}"]
)
async def test_bodies_that_no_parser_should_meet(path: str, raw: bytes) -> None:
    async with local_generator() as generator, client(gateway(generator)) as http:
        answer = await http.post(path, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == (422 if path == "/generate" else 400), answer.text


async def test_nul_comes_back_as_it_was() -> None:
    async with local_generator() as generator, client(gateway(generator)) as http:
        ids = (await http.post("/tokenize", json={"prompt": "a\0b"})).json()["tokens"]
        assert (await http.post("/detokenize", json={"tokens": ids})).json() == {"prompt": "a\0b"}
        path, body = infer(["a\0b"], sampling_parameters='{"max_tokens": 1}')
        assert (await http.post(path, json=body)).status_code == 200
        assert generator.requests[-1].prompt_token_ids == ids


async def test_no_prompt_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    served = [completion(max_tokens=2), chat(CANARY, max_tokens=2), tgi(max_new_tokens=2), infer([CANARY])]
    broken = [("/v1/completions", {"model": MODEL, "prompt": [CANARY, 1]}), ("/v1/chat/completions", CANARY)]
    async with local_generator() as generator, client(gateway(generator)) as http:
        for path, body in [*served, *REFUSED, *broken]:
            await http.post(path, json=body)
            await http.post(path, json={**body, "stream": True} if isinstance(body, dict) else body)
        assert len(generator.requests) >= 2 * len(served)
        generator.info = None
        for path, body in served:
            assert (await http.post(path, json=body)).status_code in (429, 503)
    assert CANARY not in caplog.text
