"""Usage: what a call has used, as one row of the usage ledger, and sums of such rows."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import msgspec

from cluster.calls.record import CallRecord
from cluster.quotas.charge import charged_tokens


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One call. Token counts are those of the metrics: prompts only if a replica was given, each
    of them once: not with a resumed stream whose beginning has told them."""

    time: str  #: when it ended, UTC, ISO 8601
    call: str
    tenant: str
    key: str  #: id of the credential
    model: str
    way: str  #: the endpoint
    outcome: str  #: `ok`, `client_left`, or the code of the error
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    charged_tokens: float  #: as limits count them
    duration_s: float

    @property
    def day(self) -> str:
        """UTC."""
        return self.time[:10]


NUMBERS = ("requests", "prompt_tokens", "cached_tokens", "output_tokens", "charged_tokens")
KEYS = ("tenant", "model", "day", "key", "way", "outcome")  #: what rows can be summed by


def usage_of(record: CallRecord, cached_weight: float, now: float) -> UsageRow:
    """The row of a call that has ended, at Unix time `now`."""
    has_prompt = bool(record.attempts) and not record.was_charged
    return UsageRow(
        time=datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
        call=record.call_id,
        tenant=record.tenant,
        key=record.caller.principal.key_id,
        model=record.model,
        way=record.caller.way,
        outcome=record.outcome,
        prompt_tokens=record.num_prompt_tokens if has_prompt else 0,
        cached_tokens=record.num_cached_tokens if has_prompt else 0,
        output_tokens=record.num_output_tokens,
        charged_tokens=charged_tokens(record, cached_weight),
        duration_s=round((record.ended_at or record.arrived_at) - record.arrived_at, 6),
    )


def sum_usage(rows: Iterable[UsageRow], by: Sequence[str]) -> list[dict[str, str | float]]:
    """Requests and tokens for each value of these `KEYS`, in their order."""
    sums: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        total = sums.setdefault(tuple(getattr(row, name) for name in by), [0.0] * len(NUMBERS))
        numbers = (1, row.prompt_tokens, row.cached_tokens, row.output_tokens, row.charged_tokens)
        for index, number in enumerate(numbers):
            total[index] += number
    return [
        {**dict(zip(by, key, strict=True)), **dict(zip(NUMBERS, total, strict=True))}
        for key, total in sorted(sums.items())
    ]
