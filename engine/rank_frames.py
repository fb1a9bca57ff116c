"""The messages between the driver of a replica and its ranks, and the rank's end of the connection.

The rank dials, proves that it knows the replica's secret (`engine.framing`), and then:

    rank -> driver      Here, Pong, Met, Loaded, Ready, Done, Beat, Broken
    driver -> rank      Ping, Meet, Load, Allocate, Execute, Abandon

After an `Abandon` it begins again with `Here`, its weights kept: in another generation of the group, in which lost
ranks have been replaced.

A secret belongs to one replica: the driver draws it and hands it to the ranks with `RankStart`, through a pipe.
"""

import socket
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import Any

from engine.config import EngineConfig
from engine.errors import BadCheckpoint, ConfigError, UnsupportedArchitecture
from engine.framing import Challenge, Frame, FrameDecoder, FrameError, Hello, encode, prove
from engine.step import StepPlan, StepResult
from parallel.layout import CannotSplit, LayoutError
from parallel.preflight_facts import RankFacts, Transport
from parallel.preflight_speeds import RankSpeeds

ROLE = "rank"
SPARE = "--spare"  #: the option of a process that is to get its `RankStart` later
COLLECTIVE_FAILED = "CollectiveFailed"  #: the kind of `Broken` that another rank's death causes
_CHUNK = 1 << 16


class RankStart(Frame, frozen=True, tag="start"):
    """All that a rank process is told, on its standard input, which stays open as long as its driver lives."""

    rank: int
    tensor_parallel: int
    pipeline_parallel: int
    model: str
    folder: str
    config: EngineConfig
    host: str  #: of the driver's socket and of the store
    port: int
    store_port: int
    address: str  #: of the rank itself, for the other ranks
    generation: int
    secret: bytes
    parent_pid: int  #: of who has started it, on its host
    num_sharing: int  #: processes of this host that share its memory
    cores: tuple[int, ...]  #: empty: any
    gpu: int  #: number of the one it takes, of those that it could see; nothing on a CPU
    num_threads: int
    timeout_s: float  #: of the group: longest wait for a sign of life


class Here(Frame, frozen=True, tag="here"):
    """The rank runs, and is this. What it has said before is of the past."""

    generation: int
    facts: RankFacts


class Ping(Frame, frozen=True, tag="ping"):
    """To be answered at once."""


class Pong(Frame, frozen=True, tag="pong"):
    clock_s: float  #: since the epoch, on the rank's host


class Meet(Frame, frozen=True, tag="meet"):
    """Nothing speaks against it: join the others, and measure how fast they are reached."""

    tensor: tuple[Transport, ...]  #: of the tensor group of each stage
    pipe: Transport
    is_rehearsal: bool  #: nothing is loaded afterwards: measure also what leaves memory occupied


class Met(Frame, frozen=True, tag="met"):
    """The rank has met the others, and measured."""

    speeds: RankSpeeds


class Load(Frame, frozen=True, tag="load"):
    """Take your part of the model, if you have not."""


class Loaded(Frame, frozen=True, tag="loaded"):
    """The rank holds its part of the model."""

    dtype: str
    device: str
    vocab_size: int
    position_limit: int
    num_blocks: int  #: KV blocks it has room for
    num_weight_bytes: int


class Allocate(Frame, frozen=True, tag="allocate"):
    """What all ranks have room for."""

    num_blocks: int
    max_model_len: int


class Ready(Frame, frozen=True, tag="ready"):
    """The rank has its cache, and can compute with the others."""

    attention: str


class Execute(Frame, frozen=True, tag="execute"):
    """Compute this step. `sampled`: (sequence, token) of results that were not yet told."""

    plan: StepPlan
    sampled: list[tuple[int, int]]


class Abandon(Frame, frozen=True, tag="abandon"):
    """A rank is lost: leave the group, and be of this generation from now on."""

    generation: int


class Done(Frame, frozen=True, tag="done"):
    """From the rank that samples: what the step came to."""

    result: StepResult


class Beat(Frame, frozen=True, tag="beat"):
    """Ten times a second while the rank computes, and once afterwards: how far it has come."""

    step: int
    count: int  #: ticks of its `StepProgress`
    collective: int  #: number of the last one begun
    inside: str  #: the one it waits in; empty: it computes
    is_idle: bool = False  #: it has done its part of `step`, and waits for the next plan


class Broken(Frame, frozen=True, tag="broken"):
    """The rank ends, or, if a collective has failed, waits for an `Abandon`. `kind` and `arguments`: of the error."""

    kind: str
    arguments: list[str]
    step: int


ToRank = Challenge | Ping | Meet | Load | Allocate | Execute | Abandon
FromRank = Hello | Here | Pong | Met | Loaded | Ready | Done | Beat | Broken


class DriverGone(Exception):
    """The driver has closed the connection: the rank has nothing more to do."""


class DriverConnection:
    """The rank's blocking end. `send` and `is_abandoned` may be called from any thread."""

    def __init__(self, start: RankStart) -> None:
        self._socket = socket.create_connection((start.host, start.port), start.timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decoder: FrameDecoder[Any] = FrameDecoder(ToRank)
        self._waiting: deque[Any] = deque()
        self._lock = threading.Lock()
        self._receiving = threading.Lock()
        challenge = self.receive()
        if not isinstance(challenge, Challenge):
            raise FrameError("the first message must be a challenge")
        name = str(start.rank)
        self.send(Hello(ROLE, name, prove(start.secret, challenge.nonce, ROLE, name)))
        self._socket.settimeout(None)
        _break_when_silent(self._socket, start.timeout_s)

    def send(self, frame: Frame) -> None:
        """Raises OSError when the driver is gone."""
        with self._lock:
            self._socket.sendall(encode(frame))

    def close(self) -> None:
        """Say no more."""
        self._socket.close()

    def receive(self) -> Any:
        """The next message. Raises `DriverGone` when there will be none."""
        with self._receiving:
            while not self._waiting:
                try:
                    data = self._socket.recv(_CHUNK)
                except OSError:
                    data = b""
                if not data:
                    raise DriverGone
                self._waiting += self._decoder.feed(data)
            return self._waiting.popleft()

    def is_abandoned(self) -> bool:
        """Whether an `Abandon` is among what has come; for the time in which nobody receives."""
        if self._receiving.acquire(blocking=False):
            try:
                with suppress(OSError):
                    self._waiting += self._decoder.feed(self._socket.recv(_CHUNK, socket.MSG_DONTWAIT))
            finally:
                self._receiving.release()
        return any(isinstance(frame, Abandon) for frame in tuple(self._waiting))


def _break_when_silent(connection: socket.socket, timeout_s: float) -> None:
    """Let the kernel break the connection when the peer's host has not answered for about so long: it has no power or
    no network. (A frozen peer's host answers.)"""
    if sys.platform == "linux":
        looks = max(2, round(timeout_s / 2))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, looks)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, looks)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(timeout_s * 1000))


def read_start(stream: Any) -> RankStart:
    """The start message on standard input. Raises `DriverGone` when the driver has died before it wrote it."""
    decoder: FrameDecoder[RankStart] = FrameDecoder(RankStart)
    while True:
        data = stream.read1(_CHUNK)
        if not data:
            raise DriverGone
        for start in decoder.feed(data):
            return start


#: What a rank may find wrong with what it was given; anything else is the rank's own end.
_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (ConfigError, BadCheckpoint, UnsupportedArchitecture, LayoutError, CannotSplit)
}


def broken_by(error: BaseException, step: int) -> Broken:
    """How a rank tells what it ends of."""
    return Broken(type(error).__name__, [str(argument) for argument in error.args], step)


def error_of(broken: Broken) -> Exception | None:
    """The error that the rank raised, when it finds something wrong with the model or the configuration."""
    kind = _ERRORS.get(broken.kind)
    return None if kind is None else kind(*broken.arguments)
