"""The driver's side of a replica with many ranks: sends each plan to all of them, hears the result from one.

A `StepExecutor`. The first rank that dies, breaks or stops to move ends this generation of the group: `RankLost` names
it. The next one begins with `abandon`. The ranks compute plans in the order in which they are sent; with pipeline
stages several are under way.
"""

import logging
import secrets
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NoReturn, Protocol

from engine.errors import RankLost
from engine.framing import Challenge, Frame, FrameDecoder, FrameError, Hello, encode, proven
from engine.rank_frames import COLLECTIVE_FAILED, ROLE, Abandon, Beat, Broken, Done, Execute, FromRank, Here, error_of
from engine.rank_spawn import RankProcess
from engine.step import StepPlan, StepResult
from engine.step_progress import StepProgress

log = logging.getLogger(__name__)

_TICK_S = 0.1  #: the driver looks about itself so often while it waits
_CHUNK = 1 << 16
_GREETING_S = 2.0
#: How often, and how many seconds apart, the driver looks for the exit code of a process whose connection has ended.
_PATIENCE_TICKS, _PATIENCE_S = 30, 0.01


class RankPeer:
    """One rank as the driver sees it: its connection, and how far it has said that it has come."""

    def __init__(
        self, rank: int, connection: socket.socket, decoder: "FrameDecoder[Any]", early: Sequence[Any] = ()
    ) -> None:
        self.rank = rank
        self.connection = connection
        self.decoder = decoder
        self.early = early  #: frames that came together with its greeting
        self.generation: int | None = None  #: that it is in, as it has said; None: it has said nothing yet
        self.beat = Beat(0, 0, 0, "")
        self.silent_s = 0.0  #: that the driver has lived since the last frame
        self.still_s = 0.0  #: since the last sign of progress

    def owes_beats(self, step: int) -> bool:
        """Whether it has not said yet that it has done its part of `step`."""
        return not (self.beat.is_idle and self.beat.step == step)

    @property
    def place(self) -> str:
        """Where it was last."""
        waits = f", in {self.beat.inside} (collective {self.beat.collective})" if self.beat.inside else ""
        return f"step {self.beat.step}{waits}"


class RankListener:
    """Accepts the ranks of one replica, each once at a time, when it has proven that it knows the secret."""

    def __init__(self, host: str) -> None:
        self.secret = secrets.token_bytes(32)
        self._listener = socket.create_server((host, 0))
        self._listener.settimeout(_TICK_S)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def accept(self, ranks: Collection[int], timeout_s: float, check: Callable[[int], None]) -> list[RankPeer]:
        """These ranks, in order; `check` raises when it is of no use to wait for that rank."""
        peers: dict[int, RankPeer] = {}
        until = time.monotonic() + timeout_s
        while missing := sorted(set(ranks) - peers.keys()):
            for rank in missing:
                check(rank)
            if time.monotonic() > until:
                raise RankLost(missing[0], 0, f"has not called within {timeout_s:.0f} s")
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            peer = self._greet(connection)
            if peer is None or peer.rank in peers or peer.rank not in ranks:
                connection.close()
            else:
                peers[peer.rank] = peer
        return [peers[rank] for rank in sorted(ranks)]

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()

    def _greet(self, connection: socket.socket) -> RankPeer | None:
        """A rank that knows the secret; None for anybody else."""
        until = time.monotonic() + _GREETING_S
        connection.settimeout(_GREETING_S)
        nonce = secrets.token_bytes(16)
        decoder: FrameDecoder[Any] = FrameDecoder(FromRank)
        try:
            connection.sendall(encode(Challenge(nonce)))
            frames: list[Any] = []
            while not frames:
                data = connection.recv(_CHUNK)
                if not data or time.monotonic() > until:
                    return None
                frames = decoder.feed(data)
        except (OSError, FrameError):
            return None
        hello, *early = frames
        if (
            not isinstance(hello, Hello)
            or hello.role != ROLE
            or not hello.name.isdigit()
            or not proven(self.secret, nonce, hello)
        ):
            return None
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return RankPeer(int(hello.name), connection, decoder, early)


class Starter(Protocol):
    """Who has started the ranks (`engine.rank_startup`)."""

    def close(self, *, force: bool) -> None:
        """End them, by force or when they have left by themselves."""


class RankGroup:
    """The ranks of one replica, connected. Not thread-safe; `progress` may be read from anywhere.

    `processes`: by rank. `timeout_s`: a step in which nothing moves for so long is lost.
    """

    def __init__(self, peers: list[RankPeer], processes: list[RankProcess], starter: Starter, timeout_s: float) -> None:
        self.progress = StepProgress()
        self._peers = peers
        self._processes = processes
        self._starter = starter
        self._timeout_s = timeout_s
        self._generation = 0
        self._whole_by: float | None = None  # until then the group must be whole again
        self._sampled: list[tuple[int, int]] = []
        self._step = 0
        self._is_broken = False
        self._heard: deque[tuple[RankPeer, Any]] = deque()
        self._selector = selectors.DefaultSelector()
        for peer in peers:
            self._listen(peer)

    @property
    def pids(self) -> list[int]:
        """Process ids, by rank."""
        return [process.pid for process in self._processes]

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute one step on all ranks. Raises `RankLost`; the group is of no more use then."""
        self.submit(plan)
        return self.collect()

    def submit(self, plan: StepPlan) -> None:
        """Send a plan, and what was sampled since the last one, to all ranks."""
        self.progress.begin_step()
        self._step = plan.step
        self.tell(Execute(plan, self._sampled))
        self._sampled = []

    def collect(self) -> StepResult:
        """Wait for the result of the oldest plan without one."""
        done = next(frame for _, frame in self.hear() if isinstance(frame, Done))
        self.progress.tick()
        self._sampled += [(token.sequence_id, token.token_id) for token in done.result.sampled]
        return done.result

    def tell(self, frame: Frame) -> None:
        """Send a message to all ranks."""
        data = encode(frame)
        for peer in self._peers:
            self._send(peer, data)

    def hear(self, patience_s: float | None = None) -> Iterator[tuple[RankPeer, Any]]:
        """Messages of the ranks as they come, except their beats.

        Raises `RankLost` when one is gone or has not moved for `patience_s` (default: the group's timeout).
        """
        patience_s = patience_s or self._timeout_s
        for peer in self._peers:
            peer.silent_s = peer.still_s = 0.0
        looked_at = time.monotonic()
        while True:
            while self._heard:
                yield self._heard.popleft()
            for key, _ in self._selector.select(_TICK_S):
                self._read(key.data)
            now = time.monotonic()
            if self._whole_by is not None and now > self._whole_by:
                self._lose(max(self._peers, key=lambda peer: peer.silent_s), "takes too long to be there again")
            if now - looked_at >= _TICK_S:
                looked_at = now
                self._look_about(patience_s)

    @property
    def ended(self) -> list[int]:
        """Ranks whose process has ended."""
        return [rank for rank, process in enumerate(self._processes) if process.exit_code() is not None]

    def look(self) -> None:
        """Between two steps: raises `RankLost` when a process has ended."""
        for rank in self.ended:
            self._lose(self._peers[rank], "it has ended")

    def abandon(self, lost: Collection[int], generation: int, whole_by: float) -> None:
        """End the lost ranks by force, let the others leave the group and begin again.

        `admit` and `be_whole` must follow, by that time (of `time.monotonic`).
        """
        self._generation, self._whole_by = generation, whole_by
        self._sampled = []
        self._heard.clear()
        for rank in lost:
            self._processes[rank].kill()
            self._selector.unregister(self._peers[rank].connection)
            self._peers[rank].connection.close()
        for peer in self._peers:
            if peer.rank not in lost:
                self._send(peer, encode(Abandon(generation)))

    def admit(self, peer: RankPeer, process: RankProcess) -> None:
        """Another process is this rank from now on."""
        self._peers[peer.rank], self._processes[peer.rank] = peer, process
        self._listen(peer)

    def be_whole(self) -> None:
        """All are there again, and can compute."""
        self._is_broken, self._whole_by = False, None

    def close(self) -> None:
        """End the ranks."""
        self._selector.close()
        for peer in self._peers:
            peer.connection.close()
        self._starter.close(force=self._is_broken)

    def _send(self, peer: RankPeer, data: bytes) -> None:
        try:
            peer.connection.sendall(data)
        except OSError:
            self._lose(peer, "its connection has broken")

    def _listen(self, peer: RankPeer) -> None:
        self._selector.register(peer.connection, selectors.EVENT_READ, peer)
        self._take(peer, peer.early)

    def _read(self, peer: RankPeer) -> None:
        try:
            data = peer.connection.recv(_CHUNK)
        except OSError:
            data = b""
        if not data:
            self._lose(peer, "its connection has broken")
        peer.silent_s = 0.0
        try:
            frames = peer.decoder.feed(data)
        except FrameError as error:
            self._lose(peer, str(error))
        self._take(peer, frames)

    def _take(self, peer: RankPeer, frames: Sequence[Any]) -> None:
        for frame in frames:
            if isinstance(frame, Here):
                peer.generation = frame.generation
            if peer.generation not in (None, self._generation):
                continue  # it has not heard yet that its group was given up
            if isinstance(frame, Broken):
                self._blame(peer, frame)
            if isinstance(frame, Beat):
                if (frame.count, frame.collective) != (peer.beat.count, peer.beat.collective):
                    peer.still_s = 0.0
                    self.progress.tick()
                peer.beat = frame
            else:
                self._heard.append((peer, frame))

    def _look_about(self, patience_s: float) -> None:
        """One more tick without the result: has a rank stopped, or does none of them move?

        Ticks are counted, not the clock: a driver that was itself frozen accuses nobody.
        """
        for peer in self._peers:
            peer.silent_s += _TICK_S
            peer.still_s += _TICK_S
        for peer in self._peers:
            if peer.silent_s > patience_s and peer.owes_beats(self._step):
                self._lose(peer, f"has said nothing for {peer.silent_s:.1f} s: frozen")
        if all(peer.still_s > patience_s for peer in self._peers):
            last = min(self._peers, key=lambda peer: (peer.beat.step, peer.beat.collective, bool(peer.beat.inside)))
            self._lose(last, f"has not moved for {last.still_s:.1f} s, nor have the others")

    def _blame(self, peer: RankPeer, broken: Broken) -> NoReturn:
        """A rank has said what it ends of; behind a broken collective stands the rank that was killed, if one was."""
        self._is_broken = True
        if broken.kind == COLLECTIVE_FAILED:
            for _ in range(_PATIENCE_TICKS):
                for other, process in zip(self._peers, self._processes, strict=True):
                    if (code := process.exit_code()) is not None and code < 0:
                        self._lose(other, "it was killed")
                time.sleep(_PATIENCE_S)
        error = error_of(broken)
        raise error or RankLost(peer.rank, broken.step, f"{broken.kind}: {', '.join(broken.arguments)}")

    def _lose(self, peer: RankPeer, why: str) -> NoReturn:
        self._is_broken = True
        code = self._wait_for_exit(peer.rank)
        ended = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit code {code})"
        raise RankLost(peer.rank, self._step, f"{why}{ended}; last seen in {peer.place}")

    def _wait_for_exit(self, rank: int) -> int | None:
        """The exit code of a rank that has just gone."""
        for _ in range(_PATIENCE_TICKS):
            if (code := self._processes[rank].exit_code()) is not None:
                return code
            time.sleep(_PATIENCE_S)
        return None
