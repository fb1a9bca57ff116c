"""`inference.GRPCInferenceService`: KServe's Open Inference Protocol over gRPC, streams too."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from cluster.api.completions import Completions
from cluster.api.serving import Serving
from cluster.errors import ApiError, InvalidRequest
from cluster.gateway.layers import request_id_of
from cluster.protocols.grpc_way import Context, GrpcWay, add_headers, cut_off_unread
from cluster.protocols.kserve import OpenInference
from cluster.protocols.kserve_schema import InferRequest, InferResponse, InferTensor, InferWanted
from cluster.protocols.kserve_tensors import read_elements, with_data, write_elements
from cluster.protocols.proto import open_inference_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
_FINAL = "triton_final_response"  #: Triton's mark of a stream's last response


class InferenceService:
    """The methods."""

    def __init__(self, serving: Serving, way: GrpcWay, version: str) -> None:
        self._serving, self._way = serving, way
        self._inference = OpenInference(serving, Completions(serving), version)

    async def server_live(self, request: Any, context: Context) -> Any:
        """It answers."""
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, request: Any, context: Context) -> Any:
        """Whether all models have a replica."""
        async with self._way.enter(context, f"{SERVICE}/ServerReady") as caller:
            models = self._serving.models_of(caller.principal)
            ready = all(self._inference.is_ready(model.name, caller.principal) for model in models)
            return pb.ServerReadyResponse(ready=ready)

    async def model_ready(self, request: Any, context: Context) -> Any:
        """Whether it has a replica."""
        async with self._way.enter(context, f"{SERVICE}/ModelReady") as caller:
            return pb.ModelReadyResponse(ready=self._inference.is_ready(request.name, caller.principal))

    async def server_metadata(self, request: Any, context: Context) -> Any:
        """What this server is."""
        async with self._way.enter(context, f"{SERVICE}/ServerMetadata"):
            return pb.ServerMetadataResponse(**msgspec.structs.asdict(self._inference.server()))

    async def model_metadata(self, request: Any, context: Context) -> Any:
        """What a model takes and gives."""
        async with self._way.enter(context, f"{SERVICE}/ModelMetadata") as caller:
            return pb.ModelMetadataResponse(
                **msgspec.to_builtins(self._inference.model(request.name, caller.principal))
            )

    async def infer(self, request: Any, context: Context) -> Any:
        """All at once."""
        async with self._way.enter(context, f"{SERVICE}/ModelInfer") as caller:
            asked = await self._inference.prepare(request.model_name, _read(request), caller)
            response = await self._inference.infer(asked)
            add_headers(context, asked.call.record.headers)
            return _written(response, request, is_last=True)

    async def stream_infer(self, requests: AsyncIterator[Any], context: Context) -> AsyncGenerator[Any, None]:
        """Each request's responses, one request after the other; one that fails does not end the stream."""
        way = f"{SERVICE}/ModelStreamInfer"
        async with self._way.enter(context, way):
            answers = self._answers(requests, context, way)
            async with aclosing(cut_off_unread(answers, self._serving.config.stream_stall_s)) as bounded:
                async for answer in bounded:
                    yield answer

    async def _answers(self, requests: AsyncIterator[Any], context: Context, way: str) -> AsyncGenerator[Any, None]:
        async for request in requests:
            try:
                caller = await self._way.caller(context, way, request_id_of(""))
                asked = await self._inference.prepare(request.model_name, _read(request), caller)
                async with aclosing(self._inference.stream(asked)) as responses:
                    async for response, is_last in responses:
                        yield pb.ModelStreamInferResponse(infer_response=_written(response, request, is_last))
            except ApiError as error:
                self._way.tell(error)
                yield pb.ModelStreamInferResponse(error_message=error.message)


def _read(request: Any) -> InferRequest:
    raw, inputs = list(request.raw_input_contents), []
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(f"There are {len(request.inputs)} inputs and {len(raw)} raw contents.", "inputs")
    for number, given in enumerate(request.inputs):
        tensor = InferTensor(name=given.name, shape=list(given.shape), datatype=given.datatype)
        if raw:
            data = read_elements(raw[number], given.datatype, given.name)
        else:
            contents = given.contents
            data = list(contents.bool_contents if given.datatype == "BOOL" else contents.bytes_contents)
        inputs.append(with_data(tensor, data))
    outputs = [InferWanted(name=output.name) for output in request.outputs]
    return InferRequest(inputs=inputs, id=request.id, parameters=_parameters(request.parameters), outputs=outputs)


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in given.items():
        kind = value.WhichOneof("parameter_choice")
        if kind is not None:
            found[name] = getattr(value, kind)
    return found


def _written(response: InferResponse, request: Any, is_last: bool) -> Any:
    """As bytes where the request's inputs were."""
    answer = pb.ModelInferResponse(model_name=response.model_name, model_version=response.model_version, id=response.id)
    answer.parameters[_FINAL].bool_param = is_last
    for tensor in response.outputs:
        output = answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if request.raw_input_contents:
            answer.raw_output_contents.append(write_elements(tensor.data or [], tensor.datatype))
        elif tensor.datatype == "BYTES":
            output.contents.bytes_contents.extend(str(value).encode() for value in tensor.data or [])
        else:
            output.contents.uint_contents.extend(tensor.data or [])
    return answer
