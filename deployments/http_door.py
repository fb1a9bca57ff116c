"""HttpDoor: a gateway's own HTTP listener. On leaving it accepts nobody new and sends those who are there elsewhere."""

import asyncio
import socket

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.gateway.http_listener import listener_settings

CLOSE_S = 5  #: after this the last connections are cut


class _Farewell:
    """Around the app: while the gateway leaves, each answer ends its connection."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.is_leaving = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_farewell(message: Message) -> None:
            if message["type"] == "http.response.start" and self.is_leaving:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, send_farewell)


class HttpDoor:
    """Listens from the start; `stop_accepting`, then `close`."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._farewell = _Farewell(app)
        listening = _listening_socket(host, port)
        self._server = uvicorn.Server(listener_settings(self._farewell, timeout_graceful_shutdown=CLOSE_S))
        self._task = asyncio.create_task(self._server.serve(sockets=[listening]))

    @property
    def has_ended(self) -> bool:
        return self._task.done()

    @property
    def num_connections(self) -> int:
        """Open ones, idle or not."""
        return len(self._server.server_state.connections)

    def stop_accepting(self) -> None:
        """New connections go to the other gateways of the port; the next answer on an old one is its last."""
        self._farewell.is_leaving = True
        for server in self._server.servers:
            server.close()

    async def close(self) -> None:
        """End every connection, after the answer that is under way."""
        self._server.should_exit = True
        await self._task


def _listening_socket(host: str, port: int) -> socket.socket:
    """Shared by the gateways of a host: the kernel deals connections out (SO_REUSEPORT)."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind(address)
    listening.listen(2048)
    listening.setblocking(False)
    return listening
