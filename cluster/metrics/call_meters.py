"""CallMeters: what a gateway counts of its calls. A sink of `cluster.calls.calls`; each token costs one call of it."""

from bisect import bisect_left

from cluster.calls.record import Attempt, CallRecord
from cluster.errors import ApiError
from cluster.metrics import declared
from cluster.metrics.instruments import FirstNames, Instruments

REFUSED_CREDENTIALS = (401, 403)


class _Phases:
    """The histograms of one model."""

    def __init__(self, instruments: Instruments, model: str) -> None:
        self.gateway = instruments.histogram(declared.GATEWAY_TIME, model)
        self.queue = instruments.histogram(declared.QUEUE_TIME, model)
        self.route = instruments.histogram(declared.ROUTE_TIME, model)
        self.prefill = instruments.histogram(declared.PREFILL_TIME, model)
        self.first_token = instruments.histogram(declared.FIRST_TOKEN_TIME, model)
        self.gap = instruments.histogram(declared.TOKEN_GAP, model)
        self.call = instruments.histogram(declared.CALL_TIME, model)
        self.running = instruments.number(declared.CALLS_RUNNING, model)


class Meter:
    """What the calls of one model and tenant are counted in (`cluster.calls.record.TokenMeter`)."""

    __slots__ = ("_bounds", "_gap", "cached", "output", "phases", "prompt")

    def __init__(self, instruments: Instruments, phases: _Phases, model: str, tenant: str) -> None:
        self.phases = phases
        self._gap, self._bounds = phases.gap, phases.gap.bounds
        self.prompt = instruments.number(declared.PROMPT_TOKENS, model, tenant)
        self.cached = instruments.number(declared.CACHED_TOKENS, model, tenant)
        self.output = instruments.number(declared.OUTPUT_TOKENS, model, tenant)

    def began_to_answer(self, record: CallRecord, attempt: Attempt) -> None:
        """The first token of an attempt; of the call, if it had none before."""
        phases, now = self.phases, attempt.first_token_at
        assert now is not None
        phases.queue.observe(attempt.waited_s)
        phases.route.observe(max(0.0, attempt.granted_at - attempt.asked_at - attempt.waited_s))
        phases.prefill.observe(now - attempt.granted_at)
        if record.first_token_at == now:
            phases.gateway.observe(max(0.0, record.attempts[0].asked_at - record.arrived_at))
            phases.first_token.observe(now - record.arrived_at)

    def got_tokens(self, num_tokens: int, gap_s: float | None) -> None:
        """So long after the request's last ones; None: they are its first."""
        self.output.value += num_tokens
        if gap_s is not None:
            gap = self._gap
            gap.counts[bisect_left(self._bounds, gap_s)] += 1
            gap.sum += gap_s


class CallMeters:
    """A `CallSink`."""

    def __init__(self, instruments: Instruments) -> None:
        self._instruments = instruments
        self._tenants = FirstNames()
        self._phases: dict[str, _Phases] = {}
        self._meters: dict[tuple[str, str], Meter] = {}

    def began(self, record: CallRecord) -> None:
        record.meter = meter = self._meter(record)
        meter.phases.running.value += 1

    def ended(self, record: CallRecord) -> None:
        tenant = self._tenants.label(record.tenant)
        self._instruments.number(declared.CALLS, record.model, tenant, record.outcome).value += 1
        meter, record.meter = record.meter, None
        if not isinstance(meter, Meter):  # it was not admitted
            return
        meter.phases.running.value -= 1
        meter.phases.call.observe((record.ended_at or record.arrived_at) - record.arrived_at)
        if record.attempts and not record.was_charged:  # a resumed stream's prompt was counted when it began
            meter.prompt.value += record.num_prompt_tokens
            meter.cached.value += record.num_cached_tokens

    def num_tokens(self, model: str) -> int:
        """That have come since the start."""
        return int(sum(meter.output.value for (name, _), meter in self._meters.items() if name == model))

    def answered(self, error: ApiError) -> None:
        """A request was answered with this error."""
        self._instruments.number(declared.ERROR_ANSWERS, error.code).value += 1
        if error.status in REFUSED_CREDENTIALS:
            self._instruments.number(declared.AUTH_FAILURES, error.code).value += 1

    def _meter(self, record: CallRecord) -> Meter:
        model, tenant = record.model, self._tenants.label(record.tenant)
        meter = self._meters.get((model, tenant))
        if meter is None:
            if model not in self._phases:
                self._phases[model] = _Phases(self._instruments, model)
            meter = self._meters[(model, tenant)] = Meter(self._instruments, self._phases[model], model, tenant)
        return meter
