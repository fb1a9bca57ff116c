"""Sockets of the token transport: frames over asyncio TCP, authenticated by the cluster secret.

`FrameServer` listens, `connect` dials; both give a `FrameConnection`. Messages are handed over synchronously from
`data_received`, so one read of the socket costs one wake-up however many frames it holds.
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable
from typing import Any, Protocol, cast

from cluster.frames import Challenge, Frame, FrameDecoder, FrameError, Hello, encode, prove, proven

logger = logging.getLogger("manta.transport")
HANDSHAKE_TIMEOUT_S = 5.0


class FrameHandler(Protocol):
    """Who receives the messages of one connection."""

    def on_frame(self, frame: Any) -> None: ...

    def on_lost(self) -> None:
        """Called once when an authenticated connection has ended."""
        ...


class FrameConnection(asyncio.Protocol):
    """One TCP connection after or during its handshake. `send` never blocks and is dropped once closed."""

    def __init__(self, kinds: Any, secret: bytes) -> None:
        self._decoder: FrameDecoder[Any] = FrameDecoder(kinds)
        self._secret = secret
        self._transport: asyncio.Transport | None = None
        self._handler: FrameHandler | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._received(frame)
        except FrameError as error:
            logger.warning("closing a connection: %s", error)
            self.close()

    def _received(self, frame: Frame) -> None:
        if self._handler is not None:
            self._handler.on_frame(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.on_lost()

    def send(self, frame: Frame) -> None:
        if self._transport is not None:
            self._transport.write(encode(frame))

    @property
    def is_within_host(self) -> bool:
        """Whether both ends have one address."""
        if self._transport is None:
            return False
        ends = (self._transport.get_extra_info("sockname"), self._transport.get_extra_info("peername"))
        return bool(ends[0] and ends[1] and ends[0][0] == ends[1][0])

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End it at once: a peer that reads nothing would keep `close` waiting."""
        if self._transport is not None:
            self._transport.abort()


class _Accepted(FrameConnection):
    """The listening side: challenges, checks the answer, then asks `accept` for a handler."""

    def __init__(self, server: "FrameServer") -> None:
        super().__init__(Hello | server.kinds, server.secret)
        self._server = server
        self._nonce = secrets.token_bytes(16)
        self._timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.connections.add(self)
        self._timeout = asyncio.get_running_loop().call_later(HANDSHAKE_TIMEOUT_S, self.close)
        self.send(Challenge(self._nonce))

    def _received(self, frame: Frame) -> None:
        if self._timeout is None:
            super()._received(frame)
            return
        if not isinstance(frame, Hello) or not proven(self._secret, self._nonce, frame):
            raise FrameError("the peer does not know the cluster secret")
        self._timeout.cancel()
        self._timeout = None
        self._handler = self._server.accept(frame, self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
        self._server.connections.discard(self)
        super().connection_lost(exc)


class FrameServer:
    """Listens for peers; `accept(hello, connection)` gives the handler of a proven one."""

    def __init__(self, kinds: Any, secret: bytes, accept: Callable[[Hello, FrameConnection], FrameHandler]) -> None:
        self.kinds, self.secret, self.accept = kinds, secret, accept
        self.connections: set[_Accepted] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int = 0) -> int:
        """Start; returns the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Accepted(self), host, port)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close()

    async def wait_closed(self, timeout_s: float) -> None:
        """After `close`: until all that was sent has left, or for so long."""
        until = asyncio.get_running_loop().time() + timeout_s
        while self.connections and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110 - ends by itself
            await asyncio.sleep(0.01)


class _Dialled(FrameConnection):
    """The dialling side: answers the challenge; `ready` is done once it has."""

    def __init__(self, kinds: Any, secret: bytes, hello: tuple[str, str], handler: FrameHandler) -> None:
        super().__init__(Challenge | kinds, secret)
        self._hello = hello
        self._later_handler = handler
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _received(self, frame: Frame) -> None:
        if self._handler is not None:
            super()._received(frame)
            return
        if not isinstance(frame, Challenge):
            raise FrameError("the first message must be a challenge")
        role, name = self._hello
        self.send(Hello(role, name, prove(self._secret, frame.nonce, role, name)))
        self._handler = self._later_handler
        if not self.ready.done():
            self.ready.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("closed during the handshake"))
        super().connection_lost(exc)


async def connect(
    address: tuple[str, int], kinds: Any, secret: bytes, hello: tuple[str, str], handler: FrameHandler
) -> FrameConnection:
    """Dial a FrameServer as (role, name) `hello`; raises OSError or TimeoutError."""
    async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
        transport, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Dialled(kinds, secret, hello, handler), *address
        )
        try:
            await connection.ready
        except BaseException:
            transport.abort()  # else the peer, when it wakes, would have a second connection of the same name
            raise
    return connection
