"""Frames over real sockets: only those who know the secret, only messages of the direction."""

import asyncio
import struct
from typing import Any

import pytest

from cluster.frames import Cancel, Failed, Frame, FrameDecoder, FrameError, FromReplica, Hello, ToReplica, encode
from deployments.transport import FrameConnection, FrameServer, connect
from tests.deployments.serving_world import until

HOST = "127.0.0.1"


class Recorder:
    def __init__(self) -> None:
        self.frames: list[Any] = []
        self.lost = False

    def on_frame(self, frame: Any) -> None:
        self.frames.append(frame)

    def on_lost(self) -> None:
        self.lost = True


class Peers:
    """A server that keeps a recorder and a connection per peer."""

    def __init__(self, secret: bytes = b"s") -> None:
        self.met: list[tuple[Hello, FrameConnection, Recorder]] = []
        self.server = FrameServer(ToReplica, secret, self._accept)

    def _accept(self, hello: Hello, connection: FrameConnection) -> Recorder:
        recorder = Recorder()
        self.met.append((hello, connection, recorder))
        return recorder


async def test_frames_go_both_ways_and_the_end_is_told() -> None:
    peers, mine = Peers(), Recorder()
    port = await peers.server.listen(HOST)
    connection = await connect((HOST, port), FromReplica, b"s", ("gateway", "g"), mine)
    connection.send(Cancel("a", 1))
    connection.send(Cancel("b", 2))
    await until(lambda: peers.met and len(peers.met[0][2].frames) == 2)
    hello, theirs, recorder = peers.met[0]
    assert (hello.role, hello.name) == ("gateway", "g") and recorder.frames == [Cancel("a", 1), Cancel("b", 2)]
    theirs.send(Failed("a", 1, "no"))
    await until(lambda: mine.frames == [Failed("a", 1, "no")])
    peers.server.close()
    await until(lambda: mine.lost and recorder.lost)
    assert not connection.is_open
    connection.send(Cancel("c", 0))  # dropped


@pytest.mark.parametrize(("host", "is_within"), [(HOST, True), ("127.0.0.2", False)])
async def test_whether_the_peer_is_on_this_host_shows_by_the_addresses(host: str, is_within: bool) -> None:
    peers = Peers()
    port = await peers.server.listen(host)
    connection = await connect((host, port), FromReplica, b"s", ("gateway", "g"), Recorder())
    assert connection.is_within_host == is_within
    peers.server.close()
    await until(lambda: not connection.is_open)
    assert not connection.is_within_host


async def test_a_wrong_secret_is_cut_off_before_any_message_counts() -> None:
    peers, mine = Peers(b"right"), Recorder()
    port = await peers.server.listen(HOST)
    connection = await connect((HOST, port), FromReplica, b"wrong", ("gateway", "g"), mine)
    connection.send(Cancel("a", 1))
    await until(lambda: mine.lost)
    assert peers.met == []
    peers.server.close()


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", struct.pack(">I", 3) + b"abc", encode(Failed("a", 0, "x"))])
async def test_bytes_that_are_no_frame_of_this_direction_end_the_connection(garbage: bytes) -> None:
    peers, mine = Peers(), Recorder()
    port = await peers.server.listen(HOST)
    connection = await connect((HOST, port), FromReplica, b"s", ("gateway", "g"), mine)
    await until(lambda: len(peers.met) == 1)
    assert connection._transport is not None
    connection._transport.write(garbage)
    await until(lambda: mine.lost and peers.met[0][2].lost)
    assert peers.met[0][2].frames == []
    peers.server.close()


async def test_a_silent_dialler_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.transport.HANDSHAKE_TIMEOUT_S", 0.05)
    peers = Peers()
    port = await peers.server.listen(HOST)
    reader, writer = await asyncio.open_connection(HOST, port)
    assert await asyncio.wait_for(reader.read(), 2.0) != b""  # the challenge, then the end
    writer.close()
    peers.server.close()


async def test_a_silent_listener_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.transport.HANDSHAKE_TIMEOUT_S", 0.05)
    read: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def frozen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            read.set_result(await reader.read())
        except ConnectionResetError:
            read.set_result(b"")
        writer.close()

    server = await asyncio.start_server(frozen, HOST)
    where = server.sockets[0].getsockname()[:2]
    with pytest.raises(TimeoutError):
        await connect(where, FromReplica, b"s", ("gateway", "g"), Recorder())
    assert await asyncio.wait_for(read, 2.0) == b""
    server.close()


def test_the_decoder_takes_any_cut_of_the_bytes() -> None:
    frames: list[Frame] = [Cancel(f"request-{i}", i) for i in range(5)]
    data = b"".join(encode(frame) for frame in frames)
    for size in (1, 3, 7, len(data)):
        decoder: FrameDecoder[Any] = FrameDecoder(ToReplica)
        got = [frame for at in range(0, len(data), size) for frame in decoder.feed(data[at : at + size])]
        assert got == frames


def test_a_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(FrameError, match="announces"):
        FrameDecoder(ToReplica).feed(struct.pack(">I", 2**31))


def test_a_text_that_is_not_utf_8_is_no_frame() -> None:
    with pytest.raises(FrameError, match="not a frame"):
        FrameDecoder[Any](FromReplica).feed(b"\x00\x00\x00\x03\x91\xa1\x80")
