"""Calls: every call of a gateway, whatever protocol it came by, is admitted here and told to whoever keeps accounts."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from cluster.calls.record import CallRecord
from cluster.calls.report import CallReport, report_of
from cluster.calls.reports import CallReports
from cluster.errors import ApiError

logger = logging.getLogger("manta.calls")

OK, CLIENT_LEFT = "ok", "client_left"
STATUS_OK, STATUS_CLIENT_LEFT, STATUS_BROKEN = 200, 499, 500


class Admission(Protocol):
    """Decides whether a call may run, before anything is asked of the router."""

    async def admit(self, record: CallRecord) -> None:
        """Raises an `ApiError` if it may not. May add `record.headers`."""

    def default_output(self, tenant: str, model: str, num_prompt_tokens: int) -> int | None:
        """Tokens that a call gets at most which does not say how many it wants; None: whatever the context holds."""


class CallSink(Protocol):
    """Is told of calls. It must not wait; one that raises is counted, and neither the call nor the others notice."""

    def began(self, record: CallRecord) -> None:
        """The call is admitted."""

    def ended(self, record: CallRecord) -> None:
        """The call is over, admitted or refused."""


class Calls:
    """The calls that are under way."""

    def __init__(
        self,
        admission: Admission | None = None,
        sinks: Sequence[CallSink] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._admission, self.clock = admission, clock
        self.reports = CallReports()
        self._sinks = (self.reports, *sinks)
        self.sink_failures: Counter[str] = Counter()  #: by the sink's kind
        self.running: set[CallRecord] = set()  #: a resumed stream may be there twice for a moment

    def default_output(self, tenant: str, model: str, num_prompt_tokens: int) -> int | None:
        """Tokens of output for a call that does not say how many it wants; None: no limit of the tenant's."""
        admission = self._admission
        return None if admission is None else admission.default_output(tenant, model, num_prompt_tokens)

    async def report(self, name: str, tenant: str) -> CallReport | None:
        """Of the tenant's call with that id or `X-Request-Id`: one that has ended, or one that runs at this gateway."""
        for record in self.running:
            if record.tenant == tenant and name in (record.call_id, record.caller.request_id):
                return report_of(record, self.clock(), time.time())
        return await self.reports.find(name, tenant)

    @asynccontextmanager
    async def run(self, record: CallRecord) -> AsyncIterator[None]:
        """Around all that a call does once it is prepared; raises what keeps it from being admitted."""
        outcome, status = OK, STATUS_OK
        try:
            if self._admission is not None:
                await self._admission.admit(record)
            self.running.add(record)
            for sink in self._sinks:
                self._tell(sink, sink.began, record)
            yield
        except ApiError as error:
            outcome, status = error.code, error.status
            raise
        except (asyncio.CancelledError, GeneratorExit):
            outcome, status = CLIENT_LEFT, STATUS_CLIENT_LEFT
            raise
        except Exception:
            outcome, status = ApiError.code, STATUS_BROKEN
            raise
        finally:
            self.running.discard(record)
            record.end(outcome, status, self.clock())
            for sink in self._sinks:
                self._tell(sink, sink.ended, record)

    def _tell(self, sink: CallSink, what: Callable[[CallRecord], None], record: CallRecord) -> None:
        try:
            what(record)
        except Exception:
            kind = type(sink).__name__
            if not self.sink_failures[kind]:
                logger.exception("%s fails; calls go on, and its further failures are only counted", kind)
            self.sink_failures[kind] += 1
