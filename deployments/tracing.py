"""Traces by OpenTelemetry: five spans a call, made when it has ended, so that no token waits for them.

The optional extra `manta-serve[traces]` brings the exporter.
"""

import importlib.util
import time

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cluster.calls.record import CallRecord
from cluster.config import TracesConfig
from engine.errors import ConfigError

_CONTEXT = TraceContextTextMapPropagator()


def otlp_exporter(config: TracesConfig) -> SpanExporter:
    """To `traces.endpoint`, OTLP over gRPC. ConfigError where the extra is not installed."""
    if importlib.util.find_spec("opentelemetry.exporter") is None or (
        importlib.util.find_spec("opentelemetry.exporter.otlp") is None
    ):
        raise ConfigError("traces.endpoint", config.endpoint, "needs an exporter: pip install 'manta-serve[traces]'")
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=config.endpoint, insecure=config.endpoint.startswith("http://"))


class CallTraces:
    """A `CallSink`. A call whose caller has a trace belongs to it, and is sampled as that is."""

    def __init__(self, config: TracesConfig, exporter: SpanExporter, gateway: str) -> None:
        resource = Resource.create({"service.name": "manta", "service.instance.id": gateway})
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(config.sample)))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("manta")

    def began(self, record: CallRecord) -> None:
        """Spans are made at the end."""

    def ended(self, record: CallRecord) -> None:
        """One span around, and one for each phase that was reached."""
        assert record.ended_at is not None
        ahead = time.time() - time.monotonic()
        at = [None if mark is None else int((mark + ahead) * 1e9) for mark in _marks(record)]
        arrived, *between, ended = at
        assert arrived is not None and ended is not None
        parent = _CONTEXT.extract({"traceparent": record.caller.traceparent}) if record.caller.traceparent else None
        call = self._tracer.start_span("manta.call", parent, SpanKind.SERVER, _attributes(record), start_time=arrived)
        if call.is_recording():
            for attempt in record.attempts:
                if attempt.why and attempt.ended_at is not None:
                    lost = {"manta.replica": attempt.replica_id, "manta.why": attempt.why}
                    call.add_event("attempt lost", lost, int((attempt.ended_at + ahead) * 1e9))
            if record.status >= 500:
                call.set_status(Status(StatusCode.ERROR, record.outcome))
            within, begin = trace.set_span_in_context(call), arrived
            for name, mark in zip(("prepare", "queue", "prefill", "decode"), between, strict=True):
                end = ended if mark is None else mark
                self._tracer.start_span(f"manta.{name}", within, start_time=begin).end(end)
                if mark is None:
                    break
                begin = end
        call.end(ended)

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


def _marks(record: CallRecord) -> list[float | None]:
    first, last = record.first_token_at, record.last_token_at
    return [record.arrived_at, record.prepared_at, record.granted_at, first, last, record.ended_at]


def _attributes(record: CallRecord) -> dict[str, str | int]:
    """Names of OpenTelemetry's conventions for generative AI where there is one."""
    return {
        "gen_ai.system": "manta",
        "gen_ai.request.model": record.model,
        "gen_ai.response.id": record.call_id,
        "gen_ai.usage.input_tokens": record.num_prompt_tokens,
        "gen_ai.usage.output_tokens": record.num_output_tokens,
        "manta.cached_tokens": record.num_cached_tokens,
        "manta.migrations": record.num_migrations,
        "manta.outcome": record.outcome,
        "manta.request_id": record.caller.request_id,
        "manta.tenant": record.tenant,
        "manta.way": record.caller.way,
        "http.response.status_code": record.status,
    }
