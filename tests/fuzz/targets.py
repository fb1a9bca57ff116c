"""Each parser that reads what a stranger wrote: what to give it, and what may come of that.

A target raises where a parser does what it must not: any error but its own, an answer that is the server's fault, or
something else than was written.
"""

import asyncio
import functools
import json
import struct
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, get_args

import grpc
import msgspec
from google.protobuf.message import DecodeError, Message
from hypothesis import strategies as st

from cluster.api.serving import Serving
from cluster.api.stream_events import Event
from cluster.auth.config import Family
from cluster.client import StreamFailed, StreamLost, _Reading
from cluster.config import GatewayConfig
from cluster.errors import ApiError, Unauthorized
from cluster.frames import FrameDecoder, FrameError, FromReplica, FromRouter, ToReplica, ToRouter
from cluster.gateway.layers import anyone, untold
from cluster.gateway.sse import DONE, encode_event
from cluster.protocols.grpc_inference import InferenceService
from cluster.protocols.grpc_manta import MantaService
from cluster.protocols.grpc_way import GrpcWay
from cluster.protocols.kserve_tensors import read_request
from cluster.protocols.proto import manta_pb2, open_inference_pb2
from engine.errors import BadCheckpoint
from engine.rank_frames import FromRank, ToRank
from engine.request import FinishReason, GenerateRequest, TokenChunk
from engine.safetensors_header import read_header
from tests.cluster.auth.auth_world import Clock, Publisher, authenticator, base64url, key_of, key_set
from tests.cluster.gateway.test_any_input import anything, bodies
from tests.cluster.gateway_world import MODEL, ScriptedGenerator, gateway, served_model

_runner = asyncio.Runner()


class Target(NamedTuple):
    """`check` takes what the strategy gives, and raises on a fault."""

    given: st.SearchStrategy[Any]
    check: Callable[[Any], None]


async def _one_token(request: GenerateRequest) -> AsyncIterator[TokenChunk]:
    yield TokenChunk(request.request_id, 0, 0, [70], None, FinishReason.LENGTH)


_generator = ScriptedGenerator(_one_token)
mangled = st.tuples(bodies(), st.integers(0, 300), st.binary(max_size=4)).map(
    lambda drawn: (drawn[0][0], _with(json.dumps(drawn[0][1]).encode(), drawn[1], drawn[2]))
)
others = st.tuples(
    st.sampled_from(
        ["/generate", "/generate_stream", "/", *(f"/v2/models/{MODEL}/{way}" for way in ("infer", "generate"))]
    ),
    st.fixed_dictionaries(
        {"inputs": st.text(max_size=9) | anything, "text_input": st.text(max_size=9)},
        optional={
            "parameters": anything
            | st.dictionaries(st.sampled_from(["max_new_tokens", "seed", "stop", "n"]), anything),
            "id": anything,
            "outputs": anything,
        },
    ),
)


def _with(data: bytes, place: int, other: bytes) -> bytes:
    place %= len(data) + 1
    return data[:place] + other + data[place + len(other) // 2 :]


@functools.cache
def _app() -> Any:
    return gateway(_generator)


def check_body(drawn: tuple[str, Any]) -> None:
    """Any body at any endpoint: a success, or the client's fault in JSON."""
    path, body = drawn
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, answer = _runner.run(_post(path, raw))
    assert (200 <= status < 500 and status not in (404, 424)) or b"not served here" in answer, (path, raw, answer)
    assert status == 200 or "error" in msgspec.json.decode(answer), (path, raw, answer)
    assert b"Traceback" not in answer and b"server_error" not in answer, (path, raw, answer)
    _generator.requests.clear()


async def _post(path: str, raw: bytes) -> tuple[int, bytes]:
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": raw, "more_body": False}]

    async def receive() -> Any:
        return parts.pop() if parts else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    await _app()(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


parts = st.binary(max_size=40) | anything.map(lambda value: json.dumps(value).encode())
headers = st.fixed_dictionaries(
    {"alg": st.sampled_from(["EdDSA", "none", "HS256"]) | anything, "kid": st.just("k1") | anything},
    optional=dict.fromkeys(("typ", "crit", "jku", "jwk", "b64", "zip"), anything),
).map(lambda value: json.dumps(value).encode())
tokens = st.tuples(headers | parts, parts, st.binary(max_size=64)).map(
    lambda drawn: "Bearer " + b".".join(map(base64url, drawn)).decode()
)
authorizations = st.text(max_size=80) | tokens | st.text(max_size=60).map("Bearer manta_{}".format)


@functools.cache
def _authenticator() -> Any:
    return authenticator(Publisher(key_set(key_of(Family.EDDSA))), Clock())


def check_authorization(text: str) -> None:
    """Nobody guesses a signature: 401, whatever it says."""
    try:
        _runner.run(_authenticator()(text))
    except Unauthorized:
        return
    raise AssertionError(f"{text!r} was believed")


def _reading() -> _Reading:
    return _Reading("/", {}, {}, 60.0)


event_data = anything.filter(lambda value: not isinstance(value, dict) or "error" not in value)
written_events = st.tuples(st.lists(event_data, max_size=6), st.lists(st.integers(0, 300), max_size=6))


def check_events(drawn: tuple[list[Any], list[int]]) -> None:
    """Our client reads what our gateway writes, however it is cut."""
    values, cuts = drawn
    events = [Event(b"s:%d" % number, msgspec.json.encode(value)) for number, value in enumerate(values)]
    data, reading, found = b"".join(map(encode_event, events)) + DONE, _reading(), []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
        found += list(reading.read(data[start:end]))
    assert (found, reading.is_done) == ([msgspec.json.decode(event.data) for event in events], True)


foreign_lines = st.lists(
    st.sampled_from([b"data: ", b"id: ", b"\n", b"\r\n", b"[", b'{"error":', b"}"]) | st.binary(max_size=9)
)


def check_foreign_events(lines: list[bytes]) -> None:
    """Of any other server's bytes our client makes an event, or says that they are none."""
    reading = _reading()
    for data in (b"".join(lines), b"\n\n"):
        try:
            list(reading.read(data))
        except (StreamLost, StreamFailed):
            return


_DIRECTIONS = (ToRouter, FromRouter, ToReplica, FromReplica, ToRank, FromRank)
_TAGS = [kind.__struct_config__.tag for direction in _DIRECTIONS for kind in get_args(direction)]
packable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=6)
    | st.binary(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
frame_bodies = st.binary(max_size=40) | st.tuples(st.sampled_from(_TAGS), st.lists(packable, max_size=9)).map(
    lambda drawn: msgspec.msgpack.encode([drawn[0], *drawn[1]])
)
frames = st.tuples(
    st.sampled_from(_DIRECTIONS),
    st.lists(st.binary(max_size=9) | frame_bodies.map(lambda body: struct.pack(">I", len(body)) + body), max_size=4),
)


def check_frames(drawn: tuple[Any, list[bytes]]) -> None:
    """Messages of this direction, or FrameError."""
    kinds, pieces = drawn
    decoder: FrameDecoder[Any] = FrameDecoder(kinds)
    for piece in pieces:
        try:
            found = decoder.feed(piece)
        except FrameError:
            return
        assert all(isinstance(message, kinds) for message in found)


tensor = st.fixed_dictionaries(
    {"name": st.sampled_from(["text_input", "stream"]), "datatype": st.sampled_from(["BYTES", "BOOL", "FP32"])},
    optional={
        "shape": st.lists(st.integers(-1, 4) | st.integers(), max_size=9),
        "data": anything,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 40) | anything}),
    },
)
elements = st.lists(st.binary(max_size=6).map(lambda text: struct.pack("<I", len(text)) + text)).map(b"".join)
infer_bodies = st.tuples(
    st.lists(tensor, max_size=3).map(lambda inputs: json.dumps({"inputs": inputs}).encode()) | st.binary(max_size=60),
    elements | st.binary(max_size=40),
    st.integers(-9, 9) | st.none(),
)


def check_tensors(drawn: tuple[bytes, bytes, int | None]) -> None:
    """As many elements as the shapes say, or the client's fault."""
    head, blob, shift = drawn
    try:
        found = read_request(head + blob, None if shift is None else len(head) + max(0, shift - 6))
    except ApiError as error:
        assert error.status == 400
        return
    assert all(len(tensor.data or []) == prod(tensor.shape) for tensor in found.inputs)


class _Context:
    """Of a call that nobody sees."""

    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return []

    def trailing_metadata(self) -> tuple[Any, ...]:
        return ()

    def set_trailing_metadata(self, trailers: Any) -> None: ...

    def time_remaining(self) -> None: ...

    async def abort(self, code: grpc.StatusCode, said: str) -> None:
        self.code = code
        raise grpc.aio.AbortError


@functools.cache
def _methods() -> dict[type[Message], Callable[..., Any]]:
    serving = Serving({MODEL: served_model()}, _generator, GatewayConfig())
    way = GrpcWay(anyone, untold)
    manta, inference = MantaService(serving, way), InferenceService(serving, way, "1")
    return {
        manta_pb2.GenerateRequest: manta.generate,
        manta_pb2.ChatRequest: manta.chat,
        open_inference_pb2.ModelInferRequest: inference.infer,
        open_inference_pb2.ModelMetadataRequest: inference.model_metadata,
    }


_sampling = st.builds(
    manta_pb2.Sampling,
    max_tokens=st.none() | st.integers(0, 2**32 - 1),
    temperature=st.none() | st.floats(),
    logit_bias=st.dictionaries(st.integers(0, 2**32 - 1), st.floats(), max_size=3),
    stop=st.lists(st.text(max_size=4), max_size=5),
    stop_token_ids=st.lists(st.integers(0, 2**32 - 1), max_size=3),
    top_k=st.none() | st.integers(-(2**31), 2**31 - 1),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    n=st.none() | st.integers(0, 200),
)
_input = st.builds(
    open_inference_pb2.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["text_input", "sampling_parameters", "x"]),
    datatype=st.sampled_from(["BYTES", "BOOL", ""]),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.just(1), max_size=3),
)
messages = st.one_of(
    st.builds(manta_pb2.GenerateRequest, text=st.text(max_size=9), sampling=_sampling, user=st.text(max_size=3)),
    st.builds(
        manta_pb2.ChatRequest,
        messages=st.lists(
            st.builds(manta_pb2.Message, role=st.sampled_from(["user", "x"]), content=st.text(max_size=9)), max_size=3
        ),
        sampling=_sampling,
    ),
    st.builds(
        open_inference_pb2.ModelInferRequest,
        model_name=st.sampled_from([MODEL, "", "x"]),
        inputs=st.lists(_input, max_size=3),
        raw_input_contents=st.lists(elements | st.binary(max_size=9), max_size=3),
    ),
).map(lambda message: (type(message), message.SerializeToString()))
calls = messages | st.tuples(
    st.sampled_from([manta_pb2.GenerateRequest, manta_pb2.ChatRequest, open_inference_pb2.ModelInferRequest]),
    st.binary(max_size=60),
)


def check_call(drawn: tuple[Any, bytes]) -> None:
    """Any message to our gRPC methods: an answer, or the client's fault."""
    kind, data = drawn
    try:
        request = kind.FromString(data)
    except DecodeError:
        return
    context = _Context()
    _runner.run(_call(request, context))
    assert context.code in (None, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), (request, context.code)
    _generator.requests.clear()


async def _call(request: Any, context: _Context) -> None:
    try:
        answer = _methods()[type(request)](request, context)
        if isinstance(answer, AsyncGenerator):
            async for _ in answer:
                pass
        else:
            await answer
    except grpc.aio.AbortError:
        pass


entry = st.fixed_dictionaries(
    {"dtype": st.just("F32") | anything, "shape": st.lists(st.integers(-1, 9)) | anything},
    optional={"data_offsets": st.lists(st.integers(-1, 9), min_size=2, max_size=2) | anything},
)
headers_of_files = st.dictionaries(st.text(max_size=4), entry | anything, max_size=3).map(
    lambda header: json.dumps(header).encode()
)
weights = st.tuples(headers_of_files | st.binary(max_size=40), st.integers(-3, 3), st.binary(max_size=9))


@functools.cache
def _file() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-")) / "model.safetensors"


def check_weights(drawn: tuple[bytes, int, bytes]) -> None:
    """A header that fits its file, or BadCheckpoint."""
    header, shift, data = drawn
    _file().write_bytes(struct.pack("<q", len(header) + (shift if abs(shift) > 1 else 0)) + header + data)
    try:
        found = read_header(_file())
    except BadCheckpoint:
        return
    assert all(size >= 0 for tensor in found.tensors.values() for size in tensor.shape)


TARGETS = {
    "bodies": Target(bodies() | mangled | others, check_body),
    "authorization": Target(authorizations, check_authorization),
    "events": Target(written_events, check_events),
    "foreign-events": Target(foreign_lines, check_foreign_events),
    "frames": Target(frames, check_frames),
    "tensors": Target(infer_bodies, check_tensors),
    "grpc": Target(calls, check_call),
    "weights": Target(weights, check_weights),
}
