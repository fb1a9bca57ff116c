"""The header of a safetensors file, read without torch and checked against the file's length."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from engine.errors import BadCheckpoint

_MAX_HEADER_BYTES = 100_000_000
_LENGTH = struct.Struct("<Q")
_Size = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file."""

    dtype: str  #: as safetensors names it: F32, BF16, ...
    shape: tuple[int, ...]


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[_Size, ...]
    data_offsets: tuple[_Size, _Size]


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a file holds. `raw` is the header as it stands there."""

    tensors: dict[str, TensorEntry]
    raw: bytes


def read_header(file: Path) -> SafetensorsHeader:
    """Parse the header; raises `BadCheckpoint` when it is damaged or the file is shorter or longer than it says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(_LENGTH.size)
        if len(start) < _LENGTH.size:
            raise BadCheckpoint(str(file), f"truncated: {size} bytes; download it again")
        length = _LENGTH.unpack(start)[0]
        if length > _MAX_HEADER_BYTES:
            raise BadCheckpoint(
                str(file), "not a safetensors file (its header length makes no sense): download it again"
            )
        raw = stream.read(length)
    if len(raw) < length:
        raise BadCheckpoint(str(file), f"truncated inside its header: {size} bytes; download it again")
    tensors, data_bytes = _parse(file, raw)
    expected = _LENGTH.size + length + data_bytes
    if size != expected:
        what = "truncated" if size < expected else "too long"
        raise BadCheckpoint(str(file), f"{what}: {size} bytes, its header says {expected}; download it again")
    return SafetensorsHeader(tensors, raw)


def _parse(file: Path, raw: bytes) -> tuple[dict[str, TensorEntry], int]:
    """The tensors and the bytes their data takes."""
    try:
        held = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        held.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in held.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadCheckpoint(str(file), f"its safetensors header is damaged ({error!r}): download it again") from None
    tensors = {name: TensorEntry(entry.dtype, entry.shape) for name, entry in entries.items()}
    data_bytes = max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if not tensors:
        raise BadCheckpoint(str(file), "holds no tensors: download it again")
    return tensors, data_bytes
