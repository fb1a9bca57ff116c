"""Quotas: admits calls within their tenant's limits, and settles what they have used when they are over.

Reserved is the most that a call can be charged; while it runs, what it has emitted is burned, and at its end, whatever
the end is, the rest is released. It is an `Admission` and a `CallSink` (`cluster.calls.calls`), so it holds for every
protocol.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from cluster.calls.record import CallRecord
from cluster.errors import QuotaExceeded, RequestTooLarge
from cluster.quotas.account import BEAT_S, Account, Purse, release
from cluster.quotas.bucket import WINDOW_S, Ask, Change, Reply, Want
from cluster.quotas.charge import charged_tokens, reserved_tokens
from cluster.quotas.config import QuotaConfig
from cluster.quotas.headers import limit_headers

REQUESTS, TOKENS = "requests", "tokens"
_LEAST_WAIT_S = 0.001


@dataclass(slots=True)
class _Open:
    """A call that runs, and what it has reserved; `burned`: tokens of that which it is known to have used."""

    record: CallRecord
    ask: Ask
    purse: Purse
    burned: float = 0.0


class Quotas:
    """Of one gateway. `account_of` a tenant: who keeps its limits."""

    def __init__(self, config: QuotaConfig, account_of: Callable[[str], Account]) -> None:
        self._config, self._account_of = config, account_of
        self._open: dict[CallRecord, _Open] = {}  #: a resumed stream may be there twice for a moment

    async def admit(self, record: CallRecord) -> None:
        """Reserve what the call may use; QuotaExceeded or RequestTooLarge if that cannot be."""
        ask = self._ask(record)
        if not ask.wants:
            return
        for want in ask.wants:
            if want.amount > want.capacity:
                full = [(_kind(want), want.capacity, want.capacity)]
                raise RequestTooLarge(_too_large(want), "max_tokens", limit_headers(full))
        account = self._account_of(record.tenant)
        reply, purse = await self._put(account, ask)
        if record.is_resumed and not reply.granted:  # what the stream had until now may be on its way back
            await asyncio.sleep(BEAT_S)
            reply, purse = await self._put(account, ask)
        pairs = list(zip(ask.wants, reply.usable, strict=True))
        headers = limit_headers((_kind(want), want.capacity * purse.share, usable) for want, usable in pairs)
        if not reply.granted:
            waits = [_wait_s(want, usable, purse.share) for want, usable in pairs]
            wait_s = max(waits)
            want, usable = pairs[waits.index(wait_s)]
            raise QuotaExceeded(_refusal(record.tenant, want, usable, wait_s), wait_s, headers)
        record.headers += headers
        self._open[record] = _Open(record, ask, purse)

    def default_output(self, tenant: str, model: str, num_prompt_tokens: int) -> int | None:
        """See `cluster.calls.calls.Admission`."""
        return self._config.default_output(tenant, model, num_prompt_tokens)

    def began(self, record: CallRecord) -> None:
        """Nothing more to do."""

    def ended(self, record: CallRecord) -> None:
        """Settle, once."""
        call = self._open.pop(record, None)
        if call is None:
            return
        used = {REQUESTS: 1.0 if record.attempts else 0.0, TOKENS: charged_tokens(record, self._config.cached_weight)}
        changes = []
        for want in call.ask.wants:
            kind = _kind(want)
            rest = want.amount - (call.burned if kind == TOKENS else 0.0)
            burned = min(rest, max(0.0, used[kind] - (want.amount - rest)))
            changes.append(Change(want.key, want.capacity, burned=burned, released=rest - burned))
        call.purse.change(changes)

    def burn(self) -> None:
        """Tell of what has been emitted; several times a second, so that limits fill up again while streams run."""
        for call in self._open.values():
            more = call.record.num_output_tokens - call.burned
            if more > 0:
                call.burned += more
                wants = [want for want in call.ask.wants if _kind(want) == TOKENS]
                call.purse.change([Change(want.key, want.capacity, burned=more) for want in wants])

    def _ask(self, record: CallRecord) -> Ask:
        """What it wants of each limit that there is for it."""
        limits = self._config.of(record.tenant)
        name = f"{len(record.tenant)}/{record.tenant}"
        scopes = [(name, limits), (f"{name}/{record.model}", limits.models.get(record.model))]
        wants = []
        for key, scope in scopes:
            if scope is not None and scope.requests_per_minute and not record.was_charged:
                wants.append(Want(f"{key}/{REQUESTS}", scope.requests_per_minute, 1.0))
            if scope is not None and scope.tokens_per_minute:
                wants.append(Want(f"{key}/{TOKENS}", scope.tokens_per_minute, reserved_tokens(record)))
        return Ask(wants, record.is_resumed)

    async def _put(self, account: Account, ask: Ask) -> tuple[Reply, Purse]:
        future: asyncio.Future[tuple[Reply, Purse]] = asyncio.get_running_loop().create_future()

        def done(reply: Reply, purse: Purse) -> None:
            if not future.done():
                future.set_result((reply, purse))
            elif reply.granted:
                release(purse, ask)

        asked = account.put(ask, done)
        try:
            return await future
        except asyncio.CancelledError:
            asked.withdraw()
            if not future.cancelled():  # it was answered before this task could run
                done(*future.result())
            raise


def _kind(want: Want) -> str:
    return want.key.rpartition("/")[2]


def _wait_s(want: Want, usable: float, share: float) -> float:
    """Until so much has flowed in: exact where nobody else asks and nothing is held; 0 where it is there now."""
    missing = want.amount - usable
    return 0.0 if missing <= 0.0 else max(_LEAST_WAIT_S, missing / (want.capacity * share) * WINDOW_S)


def _too_large(want: Want) -> str:
    remedy = "give a smaller `max_tokens` or a shorter prompt" if _kind(want) == TOKENS else "ask for less"
    return (
        f"This request may use {want.amount:.0f} {_kind(want)}, more than the limit of {want.capacity:.0f} a minute "
        f"ever lets through at once; {remedy}."
    )


def _refusal(tenant: str, want: Want, usable: float, wait_s: float) -> str:
    return (
        f"Rate limit of tenant {tenant!r} reached: {want.capacity:.0f} {_kind(want)} a minute, "
        f"{max(0.0, usable):.0f} left, {want.amount:.0f} asked for. Try again in {wait_s:.3g} s."
    )
