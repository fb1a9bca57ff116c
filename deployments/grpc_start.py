"""Opens the gRPC listener of a gateway whose configuration has one, if the extra that it needs is there."""

import importlib.util
from collections.abc import Callable
from typing import Protocol

from cluster.api.serving import Serving
from cluster.errors import ApiError
from cluster.gateway.app import version
from cluster.gateway.layers import Identify
from cluster.health.board import HealthBoard
from engine.errors import ConfigError

_MODULES = ("grpc", "grpc_health", "grpc_reflection")


class GrpcListener(Protocol):
    """`deployments.grpc_door.GrpcDoor`."""

    async def close(self, grace_s: float) -> None: ...


async def open_grpc(
    serving: Serving, identify: Identify, tell: Callable[[ApiError], object], board: HealthBoard, is_protected: bool
) -> GrpcListener:
    """Listen at `gateway.grpc_port`. ConfigError where a package is missing."""
    port = serving.config.grpc_port
    assert port is not None
    if any(importlib.util.find_spec(name) is None for name in _MODULES):
        raise ConfigError("gateway.grpc_port", port, "needs more packages: pip install 'manta-serve[grpc]'")
    from cluster.protocols.grpc_way import GrpcWay
    from deployments.grpc_door import GrpcDoor

    door = GrpcDoor(serving, GrpcWay(identify, tell), version(), board, is_open=not is_protected)
    await door.open(serving.config.host, port)
    return door
