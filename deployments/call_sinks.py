"""CallSinks: whoever a gateway tells of its calls, as the configuration has it."""

import asyncio
from typing import TYPE_CHECKING

from cluster.calls.call_log import CallLog
from cluster.calls.calls import CallSink
from cluster.config import MantaConfig
from deployments.json_logs import event_logger

if TYPE_CHECKING:
    from deployments.tracing import CallTraces


class CallSinks:
    """`sinks` are for `cluster.calls.calls.Calls`; close them when no call runs any more."""

    def __init__(self, config: MantaConfig, gateway: str) -> None:
        self._traces = _call_traces(config, gateway)
        self.sinks: list[CallSink] = [] if self._traces is None else [self._traces]
        if config.gateway.log_calls:
            self.sinks.append(CallLog(event_logger()))

    async def close(self) -> None:
        """What has been told reaches where it goes."""
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)


def _call_traces(config: MantaConfig, gateway: str) -> "CallTraces | None":
    if not config.traces.endpoint:
        return None
    from deployments.tracing import CallTraces, otlp_exporter  # takes a while

    return CallTraces(config.traces, otlp_exporter(config.traces), gateway)
