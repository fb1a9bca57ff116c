"""Types of KServe's Open Inference Protocol, version 2, over HTTP."""

from typing import Any

import msgspec


class InferTensor(msgspec.Struct, frozen=True, kw_only=True):
    """An input or an output. `data` is flat or nested; left out where it follows the JSON as bytes."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class InferWanted(msgspec.Struct, frozen=True, kw_only=True):
    """An output that the client asks for."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct, frozen=True, kw_only=True):
    inputs: list[InferTensor]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[InferWanted] = []


class InferResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    model_name: str
    outputs: list[InferTensor]
    id: str = ""
    model_version: str = ""


class TensorMetadata(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    version: str
    extensions: list[str]


class GenerateBody(msgspec.Struct, frozen=True, kw_only=True):
    """Of the generate extension."""

    text_input: str
    id: str = ""
    parameters: dict[str, Any] = {}


class GenerateAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    model_name: str
    text_output: str
    id: str = ""
    model_version: str = ""
    finish_reason: str = ""
