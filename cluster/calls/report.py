"""CallReport: where the time of one call went, for whoever asks why it was slow. Holds nothing of prompt or answer."""

import msgspec

from cluster.calls.record import CallRecord


class AttemptReport(msgspec.Struct, frozen=True, kw_only=True):
    """One try at one replica; seconds after the call's arrival."""

    replica: str
    granted_s: float
    first_token_s: float | None
    ended_s: float | None
    why_lost: str = ""  #: why the stream had to go on elsewhere; empty: it had not


class PhaseReport(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that each phase took, as the gateway saw it; together they are the call's time."""

    prepare: float  #: body, auth, chat template, tokens
    queue: float  #: admission, and waiting for a replica with room
    prefill: float  #: to the first token, the way to the replica and back included
    decode: float  #: from the first token to the last, pauses of migrations included
    finish: float  #: to the end of the answer


class CallReport(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `GET /v1/requests/{id}`, and a line in the log."""

    id: str
    request_id: str  #: the answer's `X-Request-Id`
    tenant: str
    key_id: str
    model: str
    way: str
    status: int
    outcome: str  #: `ok`, `client_left`, `running`, or the code of the error
    arrived: float  #: seconds since 1970
    total_s: float  #: so far
    phases_s: PhaseReport
    slowest_phase: str
    pauses_s: float  #: of `decode` and `prefill`: from the loss of an attempt to the next replica
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    choices: int
    migrations: int
    attempts: list[AttemptReport]


def report_of(record: CallRecord, now: float, wall_time: float) -> CallReport:
    """What there is to say of a call at `now`, which is `wall_time` in seconds since 1970."""
    end = now if record.ended_at is None else record.ended_at
    phases = _phases(record, end)
    names = phases.__struct_fields__
    return CallReport(
        id=record.call_id,
        request_id=record.caller.request_id,
        tenant=record.tenant,
        key_id=record.caller.principal.key_id,
        model=record.model,
        way=record.caller.way,
        status=record.status,
        outcome=record.outcome or "running",
        arrived=round(wall_time - (now - record.arrived_at), 3),
        total_s=_rounded(end - record.arrived_at),
        phases_s=phases,
        slowest_phase=max(names, key=lambda name: float(getattr(phases, name))),
        pauses_s=_rounded(_pauses(record)),
        prompt_tokens=record.num_prompt_tokens,
        cached_tokens=record.num_cached_tokens,
        output_tokens=record.num_output_tokens,
        choices=record.num_choices,
        migrations=record.num_migrations,
        attempts=[
            AttemptReport(
                replica=attempt.replica_id,
                granted_s=_rounded(attempt.granted_at - record.arrived_at),
                first_token_s=_after(record, attempt.first_token_at),
                ended_s=_after(record, attempt.ended_at),
                why_lost=attempt.why,
            )
            for attempt in record.attempts
        ],
    )


def _phases(record: CallRecord, end: float) -> PhaseReport:
    """A phase that was not reached took no time; the one in which the call ended lasted to the end."""
    marks = [record.arrived_at, record.prepared_at, record.granted_at, record.first_token_at]
    marks.append(record.last_token_at if record.ended_at is not None else None)
    reached = [mark if mark is not None else end for mark in marks]
    lengths = [_rounded(later - earlier) for earlier, later in zip(reached, [*reached[1:], end], strict=True)]
    return PhaseReport(**dict(zip(PhaseReport.__struct_fields__, lengths, strict=True)))


def _pauses(record: CallRecord) -> float:
    """Each lost attempt, to the grant that follows it, whichever of the call's requests that is for."""
    grants = [attempt.granted_at for attempt in record.attempts]
    pauses = 0.0
    for attempt in record.attempts:
        if attempt.why and attempt.ended_at is not None:
            pauses += min((grant for grant in grants if grant >= attempt.ended_at), default=attempt.ended_at)
            pauses -= attempt.ended_at
    return pauses


def _after(record: CallRecord, moment: float | None) -> float | None:
    return None if moment is None else _rounded(moment - record.arrived_at)


def _rounded(seconds: float) -> float:
    return round(seconds, 6)
