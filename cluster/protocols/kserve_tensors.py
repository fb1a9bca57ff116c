"""The tensors of Open Inference requests, as JSON, or as bytes behind it (the binary tensor data extension)."""

import struct
from collections.abc import Sequence
from math import prod
from typing import Any

import msgspec

from cluster.api.request_body import decode_body, shown
from cluster.errors import InvalidRequest
from cluster.protocols.kserve_schema import InferRequest, InferResponse, InferTensor

MOST_ELEMENTS, MOST_DIMENSIONS = 4096, 8
_decode = msgspec.json.Decoder(InferRequest)


def read_request(body: bytes, header_length: int | None) -> InferRequest:
    """`header_length`: bytes of the JSON, where binary tensors follow. All inputs have their data after this, flat."""
    if header_length is None:
        header_length = len(body)
    if not 0 <= header_length <= len(body):
        raise InvalidRequest(
            f"`Inference-Header-Content-Length` is {header_length}, the body has {len(body)} bytes.", "body"
        )
    request = decode_body(body[:header_length], _decode)
    inputs, at = [], header_length
    for tensor in request.inputs:
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            data = _flat(tensor.data or [], tensor.name)
        elif not isinstance(size, int) or not 0 <= size <= len(body) - at:
            raise InvalidRequest(
                f"input {shown(tensor.name)}: binary_data_size is {shown(size)}, which is not there.", "inputs"
            )
        else:
            data = read_elements(body[at : at + size], tensor.datatype, tensor.name)
            at += size
        inputs.append(with_data(tensor, data))
    if at != len(body):
        raise InvalidRequest(f"{len(body) - at} bytes of the body belong to no input.", "body")
    return msgspec.structs.replace(request, inputs=inputs)


def with_data(tensor: InferTensor, data: list[Any]) -> InferTensor:
    """The tensor with its data, which must be as many as its shape says."""
    count = _count(tensor)
    if len(data) != count:
        raise InvalidRequest(
            f"input {shown(tensor.name)} has {count} elements by its shape and {len(data)} in its data.",
            "inputs",
        )
    return msgspec.structs.replace(tensor, data=data)


def write_response(response: InferResponse, binary: Sequence[str]) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where the outputs named in `binary` follow as bytes."""
    outputs, blobs = [], []
    for tensor in response.outputs:
        if tensor.name in binary:
            blob = write_elements(tensor.data or [], tensor.datatype)
            blobs.append(blob)
            tensor = msgspec.structs.replace(tensor, data=None, parameters={"binary_data_size": len(blob)})
        outputs.append(tensor)
    head = msgspec.json.encode(_without_nulls(msgspec.structs.replace(response, outputs=outputs)))
    return (head + b"".join(blobs), len(head)) if blobs else (head, None)


def read_elements(blob: bytes, datatype: str, name: str) -> list[Any]:
    """BYTES: each with its length before it, little endian; BOOL: one byte each."""
    if datatype == "BOOL":
        return [bool(value) for value in blob]
    if datatype != "BYTES":
        raise InvalidRequest(
            f"input {shown(name)} is {shown(datatype)}; the inputs of a language model are BYTES and BOOL.", "inputs"
        )
    found, at = [], 0
    while at < len(blob):
        if at + 4 > len(blob):
            raise InvalidRequest(f"input {shown(name)} ends inside of an element's length.", "inputs")
        (length,) = struct.unpack_from("<I", blob, at)
        at += 4
        if at + length > len(blob):
            raise InvalidRequest(f"input {shown(name)} ends inside of an element.", "inputs")
        found.append(blob[at : at + length])
        at += length
    return found


def write_elements(values: Sequence[Any], datatype: str) -> bytes:
    """The inverse, for the datatypes of outputs."""
    if datatype == "BYTES":
        texts = [str(value).encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    assert datatype == "UINT32", datatype
    return struct.pack(f"<{len(values)}I", *values)


def text_of(value: object, name: str) -> str:
    """An element of BYTES as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(f"input {shown(name)} is not UTF-8.", "inputs") from None
    raise InvalidRequest(f"input {shown(name)} holds {shown(value)}; it must hold texts.", "inputs")


def _count(tensor: InferTensor) -> int:
    is_sane = 1 <= len(tensor.shape) <= MOST_DIMENSIONS and min(tensor.shape) >= 0
    count = prod(tensor.shape) if is_sane else -1
    if not 0 <= count <= MOST_ELEMENTS:
        raise InvalidRequest(
            f"input {shown(tensor.name)} has the shape {shown(str(tensor.shape[:MOST_DIMENSIONS]))}; give at most "
            f"{MOST_DIMENSIONS} sizes, whose product is at most {MOST_ELEMENTS}.",
            "inputs",
        )
    return count


def _flat(data: list[Any], name: str) -> list[Any]:
    """Data may be nested as its shape is."""
    flat: list[Any] = []
    waiting: list[Any] = [iter(data)]
    while waiting:
        for value in waiting[-1]:
            if isinstance(value, list):
                waiting.append(iter(value))
                break
            flat.append(value)
            if len(flat) > MOST_ELEMENTS:
                raise InvalidRequest(f"input {shown(name)} has more than {MOST_ELEMENTS} elements.", "inputs")
        else:
            waiting.pop()
    return flat


def _without_nulls(response: InferResponse) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(response)
    for tensor in plain["outputs"]:
        if tensor["data"] is None:
            del tensor["data"]
        if not tensor["parameters"]:
            del tensor["parameters"]
    return plain
