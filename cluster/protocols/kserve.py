"""KServe's Open Inference Protocol v2 for language models: what an inference request asks, whichever way it travels.

Inputs: `text_input` (BYTES, one or several prompts) and, if wanted, `sampling_parameters` (BYTES, JSON with fields of
`/v1/completions`), `stream` (BOOL), `exclude_input_in_output` (BOOL, true where it is left out). The `parameters` of
the request itself may hold the same fields. Outputs, one element per prompt: `text_output`, `finish_reason` (BYTES),
`num_input_tokens`, `num_output_tokens` (UINT32).
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from cluster.api.completion_format import CompletionCall
from cluster.api.completions import Completions
from cluster.api.request_body import convert_fields, shown
from cluster.api.running import run_call
from cluster.api.schema_completions import CompletionRequest
from cluster.api.serving import Serving
from cluster.auth.principal import Principal
from cluster.calls.record import Caller
from cluster.errors import InvalidRequest
from cluster.protocols.kserve_schema import (
    GenerateBody,
    InferRequest,
    InferResponse,
    InferTensor,
    ModelMetadata,
    ServerMetadata,
    TensorMetadata,
)
from cluster.protocols.kserve_tensors import text_of

VERSION = "1"
TEXT, SAMPLING, STREAM, EXCLUDE = "text_input", "sampling_parameters", "stream", "exclude_input_in_output"
_INPUTS = {TEXT: "BYTES", SAMPLING: "BYTES", STREAM: "BOOL", EXCLUDE: "BOOL"}
_OUTPUTS = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
}
#: Of the protocol itself; they say nothing about sampling.
_PROTOCOL = (
    "binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority", "timeout",
    "triton_enable_empty_final_response",
)  # fmt: skip
_OURS = ("prompt", "model", "n", "echo", "stream_options", "best_of")


class Asked(msgspec.Struct, frozen=True):
    """A request that has been understood."""

    call: CompletionCall
    id: str
    prompts: list[str]
    is_stream: bool
    with_input: bool
    outputs: frozenset[str]  #: those that are wanted


class OpenInference:
    """Of one gateway."""

    def __init__(self, serving: Serving, completions: Completions, version: str) -> None:
        self._serving, self._completions, self._version = serving, completions, version

    def server(self) -> ServerMetadata:
        """What this server is."""
        return ServerMetadata(name="manta", version=self._version, extensions=["binary_tensor_data", "generate"])

    def model(self, name: str, principal: Principal) -> ModelMetadata:
        """What a model takes and gives."""
        found = self._serving.model(name, principal)
        inputs = [TensorMetadata(name=key, datatype=kind, shape=[-1]) for key, kind in _INPUTS.items()]
        outputs = [TensorMetadata(name=key, datatype=kind, shape=[-1]) for key, kind in _OUTPUTS.items()]
        return ModelMetadata(name=found.name, versions=[VERSION], platform="manta", inputs=inputs, outputs=outputs)

    def is_ready(self, name: str, principal: Principal) -> bool:
        """Whether a replica of the model has announced itself."""
        return self._serving.generator.model_info(self._serving.model(name, principal).name) is not None

    async def prepare(self, model: str, request: InferRequest, caller: Caller) -> Asked:
        """Validate and tokenize; whatever is wrong with the request is raised here."""
        given: dict[str, list[Any]] = {}
        for tensor in request.inputs:
            if _INPUTS.get(tensor.name) != tensor.datatype:
                known = ", ".join(f"{name} ({kind})" for name, kind in _INPUTS.items())
                raise InvalidRequest(
                    f"input {shown(tensor.name)} ({shown(tensor.datatype)}) is none of: {known}.", "inputs"
                )
            given[tensor.name] = tensor.data or []
        if not given.get(TEXT):
            raise InvalidRequest(f"input `{TEXT}` is missing; give a prompt.", "inputs")
        prompts = [text_of(value, TEXT) for value in given[TEXT]]
        parameters = {key: value for key, value in request.parameters.items() if key not in _PROTOCOL}
        fields = {**parameters, **_sampling(given.get(SAMPLING, []))}
        is_stream = _flag(given, STREAM, bool(fields.pop("stream", False)))
        wanted = _wanted(request)
        call = await self._prepare(model, prompts, fields, caller)
        return Asked(call, request.id, prompts, is_stream, not _flag(given, EXCLUDE, True), wanted)

    async def prepare_text(self, model: str, body: GenerateBody, caller: Caller) -> Asked:
        """The same for the generate extension, where the path says whether it is a stream."""
        fields = {key: value for key, value in body.parameters.items() if key != STREAM}
        call = await self._prepare(model, [body.text_input], fields, caller)
        return Asked(call, body.id, [body.text_input], False, False, frozenset(_OUTPUTS))

    async def _prepare(
        self, model: str, prompts: list[str], fields: Mapping[str, Any], caller: Caller
    ) -> CompletionCall:
        for name in _OURS:
            if name in fields:
                raise InvalidRequest(f"`{name}` is not a parameter of inference requests; leave it out.", name)
        body = convert_fields({**fields, "model": model, "prompt": prompts}, CompletionRequest)
        return await self._completions.prepare(body, caller)

    async def infer(self, asked: Asked) -> InferResponse:
        """All at once."""
        texts = [prompt if asked.with_input else "" for prompt in asked.prompts]
        reasons, lengths = [""] * len(texts), [0] * len(texts)
        async with aclosing(run_call(self._serving, asked.call)) as deltas:
            async for delta in deltas:
                texts[delta.choice] += delta.text
                lengths[delta.choice] = delta.next_index
                reasons[delta.choice] = delta.finish_reason or reasons[delta.choice]
        return self._response(asked, texts, reasons, lengths)

    async def stream(self, asked: Asked) -> AsyncGenerator[tuple[InferResponse, bool], None]:
        """A response per piece of text, and whether it is the last. One prompt only."""
        if len(asked.prompts) != 1:
            raise InvalidRequest(f"A stream has one prompt; `{TEXT}` holds {len(asked.prompts)}.", "inputs")
        before = asked.prompts[0] if asked.with_input else ""
        async with aclosing(run_call(self._serving, asked.call)) as deltas:
            async for delta in deltas:
                if delta.text or before or delta.finish_reason:
                    text, before = before + delta.text, ""
                    response = self._response(asked, [text], [delta.finish_reason or ""], [delta.next_index])
                    yield response, delta.finish_reason is not None

    def _response(self, asked: Asked, texts: list[str], reasons: list[str], lengths: list[int]) -> InferResponse:
        num_inputs = [len(choice.request.prompt_token_ids) for choice in asked.call.choices]
        values: tuple[list[Any], ...] = (texts, reasons, num_inputs, lengths)
        outputs = [
            InferTensor(name=name, datatype=kind, shape=[len(texts)], data=data)
            for (name, kind), data in zip(_OUTPUTS.items(), values, strict=True)
            if name in asked.outputs
        ]
        return InferResponse(model_name=asked.call.model.name, model_version=VERSION, id=asked.id, outputs=outputs)


def _wanted(request: InferRequest) -> frozenset[str]:
    """The outputs that are named; all, if none is."""
    for output in request.outputs:
        if output.name not in _OUTPUTS:
            raise InvalidRequest(f"There is no output `{output.name}`; there are {', '.join(_OUTPUTS)}.", "outputs")
    return frozenset(output.name for output in request.outputs) or frozenset(_OUTPUTS)


def _sampling(given: list[Any]) -> dict[str, Any]:
    if not given:
        return {}
    try:
        found = msgspec.json.decode(text_of(given[0], SAMPLING))
    except (msgspec.DecodeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidRequest(f"input `{SAMPLING}` is not a JSON object.", "inputs")
    return found


def _flag(given: Mapping[str, list[Any]], name: str, default: bool) -> bool:
    values = given.get(name) or [default]
    if not isinstance(values[0], bool):
        raise InvalidRequest(f"input `{name}` holds {shown(values[0])}; it must hold true or false.", "inputs")
    return values[0]
