"""CallLog: one line per call. It names who and how much, never what: no text of a prompt or an answer."""

import time
from typing import Any, Protocol

import msgspec

from cluster.calls.record import CallRecord
from cluster.calls.report import report_of

_NOT_LOGGED = ("attempts", "phases_s", "arrived")


class EventLogger(Protocol):
    """A structlog logger."""

    def info(self, event: str, **fields: Any) -> Any: ...


class CallLog:
    """A `CallSink`."""

    def __init__(self, logger: EventLogger) -> None:
        self._logger = logger

    def began(self, record: CallRecord) -> None:
        """A call is told of when it has ended."""

    def ended(self, record: CallRecord) -> None:
        """Phases in milliseconds, and the trace it belongs to, if its caller has named one."""
        assert record.ended_at is not None
        report = report_of(record, record.ended_at, time.time())
        fields = {name: getattr(report, name) for name in report.__struct_fields__ if name not in _NOT_LOGGED}
        phases = msgspec.structs.asdict(report.phases_s)
        fields |= {f"{name}_ms": round(1e3 * seconds, 3) for name, seconds in phases.items()}
        if record.caller.traceparent:
            fields["trace_id"] = record.caller.traceparent[3:35]
        self._logger.info("call", **fields)
