"""HealthListener: the three health answers of a gateway, from a thread and a port that its event loop cannot hold up.

For the orchestrator's probes, not for the world: its only limits are a few dozen connections at a time, of which the
oldest makes room for a new one, and a short life of each.
"""

import logging
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from cluster.config import GatewayConfig
from cluster.health.board import PATHS, HealthBoard
from engine.errors import ConfigError

WATCH_S = 0.1
LIFE_S = 2.0  #: of a connection, from its arrival to the end of its answer
MOST_CONNECTIONS = 64
logger = logging.getLogger("manta.health")


class HealthListener:
    """Listens from the start until `close`; OSError where the port is taken."""

    def __init__(self, board: HealthBoard, host: str, port: int) -> None:
        self._server = _Server((host, port), board)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(WATCH_S,), name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def open_health_listener(board: HealthBoard, config: GatewayConfig) -> HealthListener | None:
    """A gateway's. None where its port was chosen by nobody, and is taken: then there is health on the API's port."""
    try:
        return HealthListener(board, config.host, config.health_listener_port)
    except OSError as error:
        if config.health_port is not None:
            raise ConfigError("gateway.health_port", config.health_port, f"give another one ({error})") from error
        port = config.health_listener_port
        logger.warning("health has no port of its own, %d is taken; name another: gateway.health_port", port)
        return None


class _Server(ThreadingHTTPServer):
    allow_reuse_port = True  # the gateways of a host share it, as they share the port of the API
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], board: HealthBoard) -> None:
        self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        super().__init__(address, _Handler)
        self.board = board
        self._arrived: dict[socket.socket, float] = {}  # open connections, oldest first

    def server_bind(self) -> None:
        """As in a plain TCP server: `HTTPServer` would ask the resolver for a name, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def service_actions(self) -> None:
        """Between two connections, and ten times a second."""
        now = time.monotonic()
        self.board.watch(now)
        for connection, arrived_at in list(self._arrived.items()):
            if now - arrived_at > LIFE_S:
                self._cut(connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        open_now = list(self._arrived)
        if len(open_now) >= MOST_CONNECTIONS:
            self._cut(open_now[0])
        self._arrived[request] = time.monotonic()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._arrived.pop(request, None)

    def _cut(self, connection: socket.socket) -> None:
        """Its thread finds it ended."""
        self._arrived.pop(connection, None)
        with suppress(OSError):  # it has just ended by itself
            connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.info("a health check broke off", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def version_string(self) -> str:
        return "manta"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path not in PATHS:
            self._send(404, b'{"status":"unknown path"}')
            return
        answer = self.server.board.answer(url.path, parse_qs(url.query).get("model", [""])[0])
        self._send(answer.http_status, msgspec.json.encode(answer))

    do_HEAD = do_GET

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody wants a line for each probe."""
