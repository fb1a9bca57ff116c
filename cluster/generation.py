"""The seam between the HTTP side of a gateway and the side that knows shards and replicas.

`cluster.gateway.app` calls a `Generator`; in production that is `cluster.streams.dispatcher.Dispatcher`, in tests and
in the null-engine benchmark it may be an engine in the same process.
"""

from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from cluster.calls.record import CallRecord
from engine.config import EngineInfo
from engine.request import GenerateRequest, TokenChunk

#: Told of every chunk before its reader is woken, and the weights revision that made it.
OnChunk = Callable[[TokenChunk, str], object]


class RequestContext(msgspec.Struct, frozen=True, kw_only=True):
    """What surrounds a request: who asks, and for how long it matters."""

    model: str  #: the served name
    tenant: str = "default"
    session: str = ""  #: requests of one session are served by the same replica where that matters; empty: no session
    weights_revision: str = ""  #: go on with these weights only (tokens of theirs are out already); empty: any
    timeout_s: float = 600.0  #: from now; past it the request ends (504 before its first token)
    on_chunk: OnChunk | None = None
    record: CallRecord | None = None  #: of the call that the request belongs to


class Generator(Protocol):
    """Runs requests somewhere and streams their tokens back."""

    def model_info(self, model: str) -> EngineInfo | None:
        """Facts of a served model from any of its ready replicas; None while none is ready."""
        ...

    def stream(self, request: GenerateRequest, context: RequestContext) -> AsyncIterator[TokenChunk]:
        """Chunks in order, each index exactly once; the last carries `finish`.

        Raises an `ApiError` instead where the request cannot go on. Closing the iterator (`aclose`) or
        cancelling the task that reads it frees the work within a step.
        """
        ...
