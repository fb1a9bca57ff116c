"""KServe's Open Inference Protocol, through the client that people use for it."""

import asyncio
import json
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from cluster.errors import ApiError, InvalidRequest
from cluster.protocols.kserve_tensors import read_elements, read_request, write_elements
from engine.request import FinishReason, GenerateRequest, TokenChunk
from tests.cluster.gateway_world import (
    MODEL,
    ScriptedGenerator,
    client,
    gateway,
    live_server,
    local_generator,
    served_model,
)

PROMPTS = ["The sea is", "Once, in the mountains"]
SAMPLING = {"max_tokens": 8, "temperature": 0}


async def through_triton(generator: Any, work: Callable[[triton.InferenceServerClient], Any]) -> Any:
    async with live_server(gateway(generator)) as address:

        def run() -> Any:
            with triton.InferenceServerClient(address.removeprefix("http://")) as http:
                return work(http)

        return await asyncio.to_thread(run)


def tensor(name: str, values: list[Any], binary: bool) -> triton.InferInput:
    kind, array = ("BOOL", np.array(values, bool)) if name in ("stream", "exclude_input_in_output") else ("BYTES", None)
    if array is None:
        array = np.array([value.encode() for value in values], dtype=object)
    made = triton.InferInput(name, [len(values)], kind)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


@pytest.mark.parametrize("binary", [True, False])
async def test_infer(binary: bool) -> None:
    def work(http: triton.InferenceServerClient) -> Any:
        assert http.is_server_live()
        assert http.is_server_ready()
        assert http.is_model_ready(MODEL)
        assert http.get_server_metadata()["name"] == "manta"
        assert {found["name"] for found in http.get_model_metadata(MODEL)["inputs"]} >= {"text_input", "stream"}
        inputs = [
            tensor("text_input", PROMPTS, binary),
            tensor("sampling_parameters", [json.dumps(SAMPLING)], binary),
            tensor("exclude_input_in_output", [False], binary),
        ]
        names = ["text_output", "num_input_tokens", "num_output_tokens", "finish_reason"]
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
        found = http.infer(MODEL, inputs, request_id="7", outputs=outputs)
        assert found.get_response()["id"] == "7"
        return [found.as_numpy(name).tolist() for name in names]

    async with local_generator() as generator:
        texts, num_inputs, num_outputs, reasons = await through_triton(generator, work)
        async with client(gateway(generator)) as http:
            body = {"model": MODEL, "prompt": PROMPTS, "echo": True, **SAMPLING}
            expected = (await http.post("/v1/completions", json=body)).json()
    said = [text.decode() if isinstance(text, bytes) else text for text in texts]
    assert said == [choice["text"] for choice in expected["choices"]]
    assert (sum(num_inputs), num_outputs) == (expected["usage"]["prompt_tokens"], [8, 8])
    assert [str(reason) if isinstance(reason, str) else reason.decode() for reason in reasons] == ["length", "length"]


async def test_the_generate_extension_whole_and_streamed() -> None:
    async with local_generator() as generator, client(gateway(generator)) as http:
        body = {"text_input": PROMPTS[0], "parameters": SAMPLING, "id": "9"}
        whole = (await http.post(f"/v2/models/{MODEL}/generate", json=body)).json()
        stream = await http.post(f"/v2/models/{MODEL}/generate_stream", json=body)
    pieces = [json.loads(line.removeprefix("data: ")) for line in stream.text.strip().split("\n\n")]
    assert "".join(piece["text_output"] for piece in pieces) == whole["text_output"]
    assert (whole["id"], whole["finish_reason"], pieces[-1]["finish_reason"]) == ("9", "length", "length")
    assert "finish_reason" not in pieces[0]


async def test_who_asks_for_a_model_that_is_not_there_is_told_so() -> None:
    def work(http: triton.InferenceServerClient) -> None:
        assert not http.is_model_ready("nothing")
        with pytest.raises(InferenceServerException, match="not served here"):
            http.infer("nothing", [tensor("text_input", ["x"], True)])
        with pytest.raises(InferenceServerException, match="temperature"):
            http.infer(
                MODEL, [tensor("text_input", ["x"], True), tensor("sampling_parameters", ['{"temperature": 9}'], True)]
            )

    async with local_generator() as generator:
        await through_triton(generator, work)


async def test_what_cannot_be_answered_is_not_computed() -> None:
    generator = ScriptedGenerator(no_tokens)
    body = {"inputs": [{"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["x"]}]}
    async with client(gateway(generator)) as http:
        path = f"/v2/models/{MODEL}/infer"
        wrong = await http.post(path, json={**body, "outputs": [{"name": "text"}]})
        foreign = await http.post(path, content=json.dumps(body), headers={"content-type": "text/plain"})
        unsaid = await http.post(path, content=json.dumps(body))
    assert (wrong.status_code, foreign.status_code, unsaid.status_code) == (400, 415, 200)
    assert "There is no output" in wrong.json()["error"]
    assert len(generator.requests) == 1


async def test_a_name_may_hold_slashes() -> None:
    name = "org/small"
    models = {name: msgspec.structs.replace(served_model(), name=name)}
    async with local_generator() as generator, client(gateway(generator, models)) as http:
        for path in (name, f"{name}/versions/1"):
            assert (await http.get(f"/v2/models/{path}")).json()["name"] == name
            assert (await http.get(f"/v2/models/{path}/ready")).status_code == 200
            answer = await http.post(f"/v2/models/{path}/generate", json={"text_input": "x", "parameters": SAMPLING})
            assert answer.json()["model_name"] == name


async def no_tokens(request: GenerateRequest) -> Any:
    yield TokenChunk(request.request_id, 0, 0, [], None, FinishReason.LENGTH)


@pytest.mark.parametrize(
    ("body", "length", "said"),
    [
        ({"inputs": [{"name": "text_input", "shape": [2], "datatype": "BYTES", "data": ["x"]}]}, None, "elements"),
        ({"inputs": [{"name": "text_input", "shape": [-1], "datatype": "BYTES", "data": ["x"]}]}, None, "shape"),
        ({"inputs": [{"name": "text_input", "shape": [10**9], "datatype": "BYTES", "data": []}]}, None, "shape"),
        ({"inputs": [{"name": "a", "shape": [2**62] * 30_000, "datatype": "BYTES", "data": []}]}, None, "8 sizes"),
        ({"inputs": [{"name": "x", "shape": [10**9] * 50_000, "datatype": "BYTES", "data": []}]}, None, "shape"),
        ({"inputs": [{"name": "x", "shape": [1] * 9, "datatype": "BYTES", "data": ["y"]}]}, None, "shape"),
        ({"inputs": []}, 10**6, "Inference-Header-Content-Length"),
        (
            {"inputs": [{"name": "a", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}]},
            None,
            "binary_data_size",
        ),
    ],
)
def test_bodies_that_are_wrong(body: dict[str, Any], length: int | None, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        read_request(json.dumps(body).encode(), length)


@given(st.binary(max_size=200), st.integers(-5, 300) | st.none())
def test_no_bytes_do_harm(blob: bytes, length: int | None) -> None:
    try:
        read_request(blob, length)
    except ApiError as error:
        assert error.status == 400
    for datatype in ("BYTES", "BOOL", "FP32"):
        try:
            read_elements(blob, datatype, "x")
        except ApiError as error:
            assert error.status == 400


@given(st.lists(st.text(max_size=20), max_size=10), st.lists(st.integers(0, 2**32 - 1), max_size=10))
def test_elements_survive(texts: list[str], numbers: list[int]) -> None:
    written = write_elements(texts, "BYTES") if not any("\ud800" <= c <= "\udfff" for t in texts for c in t) else b""
    if written or not texts:
        assert [found.decode() for found in read_elements(written, "BYTES", "x")] == texts
    assert write_elements(numbers, "UINT32") == struct.pack(f"<{len(numbers)}I", *numbers)
