"""Frames: how messages travel between processes, and how a peer shows that it belongs here.

A frame is a 4-byte big-endian length and a msgpack body; nothing is ever unpickled. A connection opens with
`Challenge` (from the side that listens) and `Hello` (a MAC over the nonce with a shared secret). The messages
themselves are in `cluster.frames` (gateways, routers, replicas) and `engine.rank_frames` (the ranks of one replica).
"""

import hashlib
import hmac
import struct
from typing import Any, Generic, TypeVar

import msgspec

MAX_FRAME_BYTES = 64 * 1024 * 1024
_LENGTH = struct.Struct(">I")


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of every message."""


class Challenge(Frame, frozen=True, tag="challenge"):
    nonce: bytes


class Hello(Frame, frozen=True, tag="hello"):
    role: str  #: "gateway", "replica", "router" or "rank"
    name: str
    mac: bytes


_encoder = msgspec.msgpack.Encoder()
T = TypeVar("T")


class FrameError(Exception):
    """The peer sent bytes that are no frame of this direction; the connection ends."""


def encode(frame: Frame) -> bytes:
    """The frame's bytes, length first."""
    body = bytearray(4)
    _encoder.encode_into(frame, body, 4)
    if len(body) - 4 > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(body) - 4} bytes is over the limit of {MAX_FRAME_BYTES}")
    _LENGTH.pack_into(body, 0, len(body) - 4)
    return bytes(body)


class FrameDecoder(Generic[T]):
    """Turns a byte stream into messages of one direction (`kinds`: a union of Frame types)."""

    def __init__(self, kinds: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kinds)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """All messages completed by `data`; raises FrameError on anything else."""
        buffer = self._buffer
        buffer += data
        messages: list[T] = []
        start, size = 0, len(buffer)
        view = memoryview(buffer)
        try:
            while size - start >= 4:
                (length,) = _LENGTH.unpack_from(buffer, start)
                if length > MAX_FRAME_BYTES:
                    raise FrameError(f"a frame announces {length} bytes; the limit is {MAX_FRAME_BYTES}")
                if size - start - 4 < length:
                    break
                messages.append(self._decoder.decode(view[start + 4 : start + 4 + length]))
                start += 4 + length
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FrameError(f"not a frame of this direction: {error}") from None
        finally:
            view.release()
        if start:
            del buffer[:start]
        return messages


def prove(secret: bytes, nonce: bytes, role: str, name: str) -> bytes:
    """The MAC that shows knowledge of the cluster secret."""
    return hmac.new(secret, b"\0".join((nonce, role.encode(), name.encode())), hashlib.sha256).digest()


def proven(secret: bytes, nonce: bytes, hello: Hello) -> bool:
    """Whether `hello` knows the cluster secret."""
    return hmac.compare_digest(prove(secret, nonce, hello.role, hello.name), hello.mac)
