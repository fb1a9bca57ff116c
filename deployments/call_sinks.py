"""CallSinks: whoever a gateway tells of its calls, as the configuration has it."""

import asyncio
from typing import TYPE_CHECKING

from cluster.calls.call_log import CallLog
from cluster.calls.calls import CallSink
from cluster.config import MantaConfig
from cluster.metrics import declared
from cluster.metrics.instruments import Instruments
from deployments.json_logs import event_logger
from deployments.usage_ledger import UsageLedger

if TYPE_CHECKING:
    from deployments.tracing import CallTraces


class CallSinks:
    """`sinks` are for `cluster.calls.calls.Calls`; close them when no call runs any more."""

    def __init__(self, config: MantaConfig, gateway: str, instruments: Instruments) -> None:
        self._traces = _call_traces(config, gateway)
        self.sinks: list[CallSink] = [] if self._traces is None else [self._traces]
        if config.gateway.log_calls:
            self.sinks.append(CallLog(event_logger()))
        self._ledger: UsageLedger | None = None
        if config.ledger.dir:
            self._lost_rows = instruments.number(declared.LEDGER_ROWS_LOST)
            self._ledger = UsageLedger(config.ledger.dir, gateway, config.quotas.cached_weight, self._count_lost)
            self.sinks.append(self._ledger)

    def _count_lost(self, num_rows: int) -> None:
        self._lost_rows.value += num_rows

    async def close(self) -> None:
        """What has been told reaches where it goes."""
        keepers = [keeper for keeper in (self._ledger, self._traces) if keeper is not None]
        await asyncio.gather(*(asyncio.to_thread(keeper.close) for keeper in keepers))


def _call_traces(config: MantaConfig, gateway: str) -> "CallTraces | None":
    if not config.traces.endpoint:
        return None
    from deployments.tracing import CallTraces, otlp_exporter  # takes a while

    return CallTraces(config.traces, otlp_exporter(config.traces), gateway)
