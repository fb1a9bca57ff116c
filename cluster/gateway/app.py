"""The HTTP side of Manta as one ASGI app: layers, routes, and nothing that knows Ray."""

import importlib.metadata
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.api.completions import Completions
from cluster.api.serving import Serving
from cluster.auth.access import Access, require
from cluster.calls.calls import Calls
from cluster.config import GatewayConfig
from cluster.console.console_endpoints import console_endpoints
from cluster.gateway.api_docs import ApiDocs
from cluster.gateway.endpoints import Endpoint, health_endpoints, list_endpoints
from cluster.gateway.error_style import SCOPE_KEY
from cluster.gateway.layers import Errors, Identification, Identify, Layer, RequestIds, untold, whoever
from cluster.gateway.openapi import openapi_document
from cluster.generation import Generator
from cluster.health.board import HealthBoard
from cluster.metrics.gateway_metrics import GatewayMetrics
from cluster.protocols.kserve_endpoints import kserve_endpoints
from cluster.protocols.tgi_endpoints import tgi_endpoints
from cluster.streams.stream_copies import StreamCopies
from cluster.text.served_model import ServedModel

DISTRIBUTION = "manta-serve"


def build_gateway(
    models: Mapping[str, ServedModel],
    generator: Generator,
    config: GatewayConfig,
    identify: Identify | None = None,
    copies: StreamCopies | None = None,
    calls: Calls | None = None,
    metrics: GatewayMetrics | None = None,
    board: HealthBoard | None = None,
) -> ASGIApp:
    """The app for these models (by served name).

    `identify` says who asks (default: anyone, or for development whom a header names). Without `copies` a stream can
    be resumed nowhere. `calls` admits and records; it is shared with the other ways in. Without `metrics` nobody
    counts, and there is no page of them and no console; without a `board` nobody is told of its health.
    """
    tells_why = identify is None
    identify, release = identify or whoever(config), version()
    serving = Serving(models, generator, config, copies, calls)
    endpoints = list_endpoints(serving, release, metrics)
    completions = Completions(serving)
    endpoints += [*tgi_endpoints(serving, completions, release), *kserve_endpoints(serving, completions, release)]
    endpoints += health_endpoints(board, tells_why)
    if metrics is not None:
        endpoints += console_endpoints(metrics, board)
    docs = ApiDocs(openapi_document(endpoints, release))
    routes: list[BaseRoute] = [
        Route(path, _Guarded(endpoint), methods=[endpoint.method]) for endpoint in endpoints for path in endpoint.paths
    ]
    open_paths = [path for endpoint in endpoints if endpoint.access is Access.OPEN for path in endpoint.paths]
    app: ASGIApp = _Routes([*routes, *docs.routes()])
    layers: list[Layer] = [
        RequestIds,
        lambda inner: Errors(inner, metrics.calls.answered if metrics is not None else untold),
        lambda inner: Identification(inner, identify, open_paths),
    ]
    for layer in reversed(layers):
        app = layer(app)
    return app


class _Guarded:
    """An endpoint for those who may."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._run, self._access, self._errors = endpoint.run, endpoint.access, endpoint.errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY] = self._errors
        if self._access is not Access.OPEN:
            require(self._access, scope["principal"])
        await self._run(scope, receive, send)


class _Routes(Router):
    """Raises what it cannot route, for the layer `Errors` to answer."""

    def __init__(self, routes: list[BaseRoute]) -> None:
        super().__init__(routes, redirect_slashes=False, default=_not_found)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await super().__call__(scope, receive, send)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(404)


def version() -> str:
    """Of the installed distribution."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:  # run from a bare checkout
        return "0+unknown"
