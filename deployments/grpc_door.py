"""GrpcDoor: a gateway's gRPC listener: Manta's own service, KServe's, health, and reflection for developers.

Needs the extra `manta-serve[grpc]`.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cluster.api.serving import Serving
from cluster.health.board import HealthBoard
from cluster.protocols import grpc_inference, grpc_manta
from cluster.protocols.grpc_inference import InferenceService
from cluster.protocols.grpc_manta import MantaService
from cluster.protocols.grpc_way import GrpcWay
from cluster.protocols.proto import manta_pb2
from cluster.protocols.proto import open_inference_pb2 as inference_pb2

LOOK_S = 0.5
_OPTIONS = (
    ("grpc.so_reuseport", 1),  # as the HTTP door: the kernel deals connections out among the gateways
    ("grpc.max_concurrent_streams", 64),
    ("grpc.max_metadata_size", 32 * 1024),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.keepalive_time_ms", 30_000),  # a client whose host has gone says nothing
    ("grpc.keepalive_timeout_ms", 10_000),
)


class GrpcDoor:
    """Listens from `open` to `close`."""

    def __init__(self, serving: Serving, way: GrpcWay, version: str, board: HealthBoard, is_open: bool) -> None:
        """`is_open`: anybody may call, and may ask what there is to be called."""
        options = (*_OPTIONS, ("grpc.max_receive_message_length", serving.config.max_body_bytes))
        self._server = grpc.aio.server(options=options)
        self._board, self._health = board, health.aio.HealthServicer()
        services = {
            grpc_manta.SERVICE: _manta(MantaService(serving, way)),
            grpc_inference.SERVICE: _inference(InferenceService(serving, way, version)),
        }
        handlers = [grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items()]
        self._server.add_generic_rpc_handlers(tuple(handlers))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._names = ("", *services)
        if is_open:
            from grpc_reflection.v1alpha import reflection

            reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self._watcher: asyncio.Task[None] | None = None

    async def open(self, host: str, port: int) -> int:
        """Listen; returns the port (0: any free one)."""
        found: int = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        await self._server.start()
        self._watcher = asyncio.create_task(self._watch())
        return found

    async def close(self, grace_s: float) -> None:
        """Accept no call any more, let those that run end for so long."""
        if self._watcher is not None:
            self._watcher.cancel()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def _watch(self) -> None:
        """The health service says what `/health/ready` says."""
        while True:
            is_ready = self._board.ready().http_status == 200
            status = health_pb2.HealthCheckResponse.SERVING if is_ready else health_pb2.HealthCheckResponse.NOT_SERVING
            for name in self._names:
                await self._health.set(name, status)
            await asyncio.sleep(LOOK_S)


def _manta(service: MantaService) -> dict[str, Any]:
    return {
        "Generate": _streaming(service.generate, manta_pb2.GenerateRequest),
        "Chat": _streaming(service.chat, manta_pb2.ChatRequest),
        "Models": _unary(service.models, manta_pb2.ModelsRequest),
    }


def _inference(service: InferenceService) -> dict[str, Any]:
    return {
        "ServerLive": _unary(service.server_live, inference_pb2.ServerLiveRequest),
        "ServerReady": _unary(service.server_ready, inference_pb2.ServerReadyRequest),
        "ModelReady": _unary(service.model_ready, inference_pb2.ModelReadyRequest),
        "ServerMetadata": _unary(service.server_metadata, inference_pb2.ServerMetadataRequest),
        "ModelMetadata": _unary(service.model_metadata, inference_pb2.ModelMetadataRequest),
        "ModelInfer": _unary(service.infer, inference_pb2.ModelInferRequest),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
            service.stream_infer, inference_pb2.ModelInferRequest.FromString, _write
        ),
    }


def _unary(method: Callable[..., Any], request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(method, request.FromString, _write)


def _streaming(method: Callable[..., Any], request: Any) -> Any:
    return grpc.unary_stream_rpc_method_handler(method, request.FromString, _write)


def _write(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
