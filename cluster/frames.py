"""The messages of the token transport, and their bytes.

A frame is a 4-byte big-endian length and a msgpack body. Each direction has its own closed set of messages, so a peer
can say only what its role may say; nothing is ever unpickled. Times are durations, never another host's clock.

A connection opens with `Challenge` (from the side that listens) and `Hello` (a MAC over the nonce with the cluster
secret); after that:

    gateway -> router   Enqueue, Withdraw                     router -> gateway   Grant, Refuse, ReplicaUp, ReplicaDown
    replica -> router   Announce, Report                      (the router says nothing to replicas)
    gateway -> replica  Submit, Cancel                        replica -> gateway  Tokens, Failed
"""

import hashlib
import hmac
import struct
from typing import Any, Generic, TypeVar

import msgspec

from engine.config import EngineInfo
from engine.request import EngineLoad, GenerateRequest, TokenChunk

MAX_FRAME_BYTES = 64 * 1024 * 1024
_LENGTH = struct.Struct(">I")


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of every message."""


class Challenge(Frame, frozen=True, tag="challenge"):
    nonce: bytes


class Hello(Frame, frozen=True, tag="hello"):
    role: str  #: "gateway" or "replica"
    name: str
    mac: bytes


class ReplicaInfo(msgspec.Struct, frozen=True):
    """Who a replica is and where it listens."""

    replica_id: str
    model: str  #: served name
    host: str
    port: int
    pids: list[int]  #: process id per rank, rank 0 first
    node: str
    engine: EngineInfo


class Enqueue(Frame, frozen=True, tag="enqueue"):
    """A request's descriptor: what the shard decides on. The prompt stays with the gateway."""

    request_id: str
    attempt: int
    model: str
    tenant: str
    priority: int
    timeout_s: float
    num_prompt_tokens: int
    max_tokens: int


class Withdraw(Frame, frozen=True, tag="withdraw"):
    """The client left, or the gateway gives a grant back."""

    request_id: str
    attempt: int


class Grant(Frame, frozen=True, tag="grant"):
    """Submit this request to that replica within `lease_s`."""

    request_id: str
    attempt: int
    replica_id: str
    lease_s: float


class Refuse(Frame, frozen=True, tag="refuse"):
    """The shard will not run this request; `code` is that of a `cluster.errors` class."""

    request_id: str
    attempt: int
    code: str
    message: str
    retry_after_s: float | None = None


class ReplicaUp(Frame, frozen=True, tag="up"):
    replica: ReplicaInfo


class ReplicaDown(Frame, frozen=True, tag="down"):
    replica_id: str


class Announce(Frame, frozen=True, tag="announce"):
    """First message of a replica."""

    replica: ReplicaInfo


class Report(Frame, frozen=True, tag="report"):
    """What a replica holds; `accepted` are the (request id, attempt) submitted since its last report."""

    load: EngineLoad
    accepted: list[tuple[str, int]]


class Submit(Frame, frozen=True, tag="submit"):
    request: GenerateRequest


class Cancel(Frame, frozen=True, tag="cancel"):
    request_id: str
    attempt: int


class Tokens(Frame, frozen=True, tag="tokens"):
    """All that one engine step made for one gateway."""

    step: int
    chunks: list[TokenChunk]


class Failed(Frame, frozen=True, tag="failed"):
    """This attempt will give no more tokens."""

    request_id: str
    attempt: int
    message: str


ToRouter = Enqueue | Withdraw | Announce | Report
FromRouter = Grant | Refuse | ReplicaUp | ReplicaDown
ToReplica = Submit | Cancel
FromReplica = Tokens | Failed

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
        except (msgspec.DecodeError, RecursionError) as error:
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
