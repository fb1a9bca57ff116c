"""The gRPC services, through a real channel: the same answers, limits and identities as over HTTP."""

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.types import Scope

from cluster.api.serving import Serving
from cluster.auth.principal import Principal
from cluster.calls.calls import Calls
from cluster.config import GatewayConfig
from cluster.errors import EngineFailed, RateLimited, Unauthorized
from cluster.gateway.layers import untold
from cluster.health.board import HealthBoard
from cluster.protocols.grpc_way import GrpcWay
from cluster.protocols.proto import manta_pb2
from cluster.protocols.proto import open_inference_pb2 as inference_pb2
from deployments.grpc_door import GrpcDoor
from engine.request import GenerateRequest, TokenChunk
from scripts.generate_protos import ROOT, render_protos
from tests.cluster.calls.test_calls import Ledger
from tests.cluster.gateway_world import MODEL, ScriptedGenerator, client, gateway, local_generator, served_model, until

REVOKED: set[str] = set()
SAMPLING = manta_pb2.Sampling(max_tokens=8, temperature=0.0)


async def identify(scope: Scope) -> Principal:
    said = dict(scope["headers"]).get(b"authorization", b"")
    if not said.startswith(b"Bearer ") or said.removeprefix(b"Bearer ").decode() in REVOKED:
        raise Unauthorized
    tenant = said.removeprefix(b"Bearer ").decode()
    if tenant == "prometheus":
        return Principal(tenant=tenant, models=frozenset(), reads_metrics=True)
    return Principal(tenant=tenant)


@asynccontextmanager
async def served(
    generator: Any, calls: Calls | None = None, **settings: Any
) -> AsyncIterator[tuple[str, grpc.aio.Channel]]:
    serving = Serving({MODEL: served_model()}, generator, GatewayConfig(**settings), calls=calls)
    board = HealthBoard([MODEL])
    door = GrpcDoor(serving, GrpcWay(identify, untold), "1.0", board, is_open=True)
    address = f"127.0.0.1:{await door.open('127.0.0.1', 0)}"
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield address, channel
    finally:
        await door.close(0.0)


def call(channel: grpc.aio.Channel, method: str, request: Any, tenant: str = "acme", **more: Any) -> Any:
    metadata = (("authorization", f"Bearer {tenant}"),) if tenant else ()
    name = f"/manta.v1.Manta/{method}"
    if method == "Models":
        unary = channel.unary_unary(name, type(request).SerializeToString, manta_pb2.ModelsResponse.FromString)
        return unary(request, metadata=metadata, **more)
    stream = channel.unary_stream(name, type(request).SerializeToString, manta_pb2.Chunk.FromString)
    return stream(request, metadata=metadata, **more)


async def test_generate_and_chat_say_what_http_says() -> None:
    async with local_generator() as generator, served(generator) as (_, channel), client(gateway(generator)) as http:
        asked = manta_pb2.GenerateRequest(text="The sea", sampling=SAMPLING)
        asked.sampling.n, asked.sampling.logprobs = 2, 1
        chunks = [chunk async for chunk in call(channel, "Generate", asked)]
        body = {"model": MODEL, "prompt": "The sea", "max_tokens": 8, "temperature": 0, "n": 2}
        expected = (await http.post("/v1/completions", json=body)).json()
        message = manta_pb2.Message(role="user", content="Hi")
        talk = [
            chunk async for chunk in call(channel, "Chat", manta_pb2.ChatRequest(messages=[message], sampling=SAMPLING))
        ]
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "temperature": 0}
        answer = (await http.post("/v1/chat/completions", json=body)).json()
        models = await call(channel, "Models", manta_pb2.ModelsRequest())
    *pieces, last = chunks
    for choice in range(2):
        mine = [piece for piece in pieces if piece.choice == choice]
        assert "".join(piece.text for piece in mine) == expected["choices"][choice]["text"]
        assert [piece.index for piece in mine if piece.token_ids] == list(range(8))
        assert [piece.finish_reason for piece in mine] == [""] * (len(mine) - 1) + ["length"]
        assert all(len(piece.logprobs) == len(piece.token_ids) for piece in mine)
    assert last.usage.completion_tokens == expected["usage"]["completion_tokens"] == 16
    assert "".join(piece.text for piece in talk) == answer["choices"][0]["message"]["content"]
    assert [model.id for model in models.models] == [MODEL]


async def refused(generator: Any, request: Any, tenant: str = "acme", calls: Calls | None = None, **more: Any) -> Any:
    async with served(generator, calls) as (_, channel):
        stream = call(channel, "Generate", request, tenant, **more)
        chunks = []
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for chunk in stream:
                chunks.append(chunk)  # what came before the error counts
        return error.value.code(), dict(error.value.trailing_metadata()), chunks


async def broken(request: GenerateRequest) -> Any:
    yield TokenChunk(request.request_id, 0, 0, [70])
    raise EngineFailed("no more")


async def test_errors_have_their_status_and_say_why() -> None:
    async with local_generator() as generator:
        code, trailers, _ = await refused(generator, manta_pb2.GenerateRequest(text="x"), tenant="")
        assert (code, trailers["manta-code"]) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_api_key")
        assert trailers["x-request-id"]
        wrong = manta_pb2.GenerateRequest(text="x", sampling=manta_pb2.Sampling(temperature=9.0))
        code, trailers, _ = await refused(generator, wrong)
        assert (code, trailers["manta-code"]) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_value")
        code, trailers, _ = await refused(generator, manta_pb2.GenerateRequest(text="x", model="nothing"))
        assert code is grpc.StatusCode.NOT_FOUND
        ledger = Ledger()
        request = manta_pb2.GenerateRequest(text="x", sampling=SAMPLING)
        code, trailers, _ = await refused(generator, request, "broke", ledger.calls)
        assert (code, trailers["retry-after"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "7")
        assert [record.outcome for record in ledger.ended_calls] == [RateLimited.code]
    code, _, chunks = await refused(ScriptedGenerator(broken), manta_pb2.GenerateRequest(text="x"))
    assert (code, len(chunks)) == (grpc.StatusCode.INTERNAL, 1)


def sampled(**fields: Any) -> manta_pb2.GenerateRequest:
    return manta_pb2.GenerateRequest(text="x", sampling=manta_pb2.Sampling(**fields))


@pytest.mark.parametrize(
    "request_",
    [
        sampled(n=129),
        sampled(max_tokens=0),
        sampled(max_tokens=2**32 - 1),
        sampled(temperature=float("nan")),
        sampled(temperature=float("inf")),
        sampled(logit_bias={1: float("inf")}),
        sampled(logit_bias={2**32 - 1: 1.0}),
        sampled(logit_bias=dict.fromkeys(range(301), 1.0)),
        sampled(stop=["x"] * 5),
        sampled(stop_token_ids=[1] * 65),
        sampled(logprobs=21),
        manta_pb2.GenerateRequest(text="word " * 4000),
        manta_pb2.GenerateRequest(token_ids=manta_pb2.TokenIds(ids=[2**32 - 1])),
        manta_pb2.GenerateRequest(),
    ],
    ids=lambda request: str(request)[:40],
)
async def test_limits_are_those_of_http(request_: Any) -> None:
    async with local_generator() as generator:
        code, _, chunks = await refused(generator, request_)
        assert (code, chunks, generator.requests) == (grpc.StatusCode.INVALID_ARGUMENT, [], [])


async def test_a_message_as_large_as_no_body_may_be() -> None:
    async with local_generator() as generator:
        code, _, _ = await refused(generator, manta_pb2.GenerateRequest(text="x" * GatewayConfig().max_body_bytes))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def endless(request: GenerateRequest) -> Any:
    yield TokenChunk(request.request_id, 0, 0, [70])
    await asyncio.Event().wait()


async def test_who_leaves_and_whose_time_is_over_frees_the_work() -> None:
    generator, ledger = ScriptedGenerator(endless), Ledger()
    async with served(generator, ledger.calls) as (_, channel):
        stream = call(channel, "Generate", manta_pb2.GenerateRequest(text="x"))
        assert (await stream.read()).token_ids == [70]
        stream.cancel()
        await until(lambda: generator.num_open == 0 and len(ledger.ended_calls) == 1)
        late = call(channel, "Generate", manta_pb2.GenerateRequest(text="x"), timeout=0.3)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in late:
                pass
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: generator.num_open == 0 and len(ledger.ended_calls) == 2)


async def flood(request: GenerateRequest) -> Any:
    for index in itertools.count():
        yield TokenChunk(request.request_id, 0, 5000 * index, [70] * 5000)
        await asyncio.sleep(0)


async def test_a_client_that_reads_nothing_is_cut_off() -> None:
    generator, ledger = ScriptedGenerator(flood), Ledger()
    async with served(generator, ledger.calls, stream_stall_s=0.2) as (_, channel):
        stream = call(channel, "Generate", manta_pb2.GenerateRequest(text="x"))
        await stream.read()
        await until(lambda: generator.num_open == 0 and len(ledger.ended_calls) == 1, 10.0)


async def test_each_request_of_a_stream_is_asked_who_it_is_from() -> None:
    def request(text: bytes) -> Any:
        tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(text)
        return inference_pb2.ModelInferRequest(model_name=MODEL, inputs=[tensor])

    async with local_generator() as generator, served(generator) as (_, channel):
        stream = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            inference_pb2.ModelInferRequest.SerializeToString,
            inference_pb2.ModelStreamInferResponse.FromString,
        )(metadata=(("authorization", "Bearer acme"),))
        await stream.write(request(b"x"))
        while not (answer := await stream.read()).infer_response.parameters["triton_final_response"].bool_param:
            assert not answer.error_message
        REVOKED.add("acme")
        try:
            await stream.write(request(b"y"))
            assert (await stream.read()).error_message
        finally:
            REVOKED.clear()
        await stream.done_writing()


async def test_health_and_reflection() -> None:
    async with local_generator() as generator, served(generator) as (_, channel):
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="manta.v1.Manta"))
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING  # the board has only just begun
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Check(health_pb2.HealthCheckRequest(service="nothing"))
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        reflections = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]))
        async for found in reflections:
            names = {service.name for service in found.list_services_response.service}
            assert names >= {"manta.v1.Manta", "inference.GRPCInferenceService", "grpc.health.v1.Health"}
            break


TRITON = """
import json, queue, sys
import numpy as np
import tritonclient.grpc as triton

address, model = sys.argv[1:]
headers = {"authorization": "Bearer acme"}
def tensor(name, values, kind):
    made = triton.InferInput(name, [len(values)], kind)
    made.set_data_from_numpy(np.array(values, dtype=bool if kind == "BOOL" else object))
    return made
sampling = tensor("sampling_parameters", [b'{"max_tokens": 6, "temperature": 0}'], "BYTES")
with triton.InferenceServerClient(address) as client:
    assert client.is_server_live() and client.is_model_ready(model, headers=headers)
    assert client.get_model_metadata(model, headers=headers).inputs[0].name == "text_input"
    text = tensor("text_input", [b"The sea"], "BYTES")
    whole = client.infer(model, [text, sampling], headers=headers).as_numpy("text_output")[0].decode()
    heard = queue.Queue()
    client.start_stream(lambda result, error: heard.put((result, error)), headers=headers)
    client.async_stream_infer("nothing", [text, sampling])
    client.async_stream_infer(model, [text, sampling, tensor("stream", [True], "BOOL")], request_id="7")
    pieces, errors, final = [], [], False
    while not final:
        result, error = heard.get(timeout=20)
        if error is not None:
            errors.append(str(error))
            continue
        pieces.append(result.as_numpy("text_output")[0].decode())
        final = result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()
print(json.dumps([whole, pieces, errors]))
"""


async def test_tritonclient_infers_and_streams() -> None:
    """In a process of its own: its messages have the names of ours."""
    async with local_generator() as generator, served(generator) as (address, _):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", TRITON, address, MODEL, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    whole, pieces, errors = json.loads(out)
    assert whole
    assert "".join(pieces) == whole
    assert len(pieces) > 1
    assert len(errors) == 1
    assert "not served here" in errors[0]


def test_the_modules_are_those_of_the_protos() -> None:
    assert {path: (ROOT / path).read_text() for path in render_protos()} == render_protos()


async def test_a_credential_for_the_metrics_calls_nothing() -> None:
    async with local_generator() as generator, served(generator) as (_, channel):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(channel, "Models", manta_pb2.ModelsRequest(), tenant="prometheus")
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
