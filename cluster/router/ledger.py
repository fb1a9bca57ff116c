"""Ledger: what was charged for the requests that run, so that each is charged once, and for what it really used.

A request is charged its expected cost when its turn comes. Later attempts are free: the work that a lost replica had
done is not its client's. When it has ended the difference to its real cost is charged or given back.
"""

import heapq
from collections import Counter
from dataclasses import dataclass

from cluster.frames import Ended, Outcome
from cluster.router.request_cost import OutputLengths, price
from cluster.router.running_shares import RunningShares
from cluster.router.waiting import Waiting

KEPT_S = 60.0  #: a charge outlives the request's deadline so long, if nobody tells the end


@dataclass(slots=True)
class Charge:
    """One request."""

    tenant: str
    priority: int
    cost: int  #: charged
    held_tokens: int  #: counted in the shares
    num_prompt_tokens: int  #: of the first attempt here; 0 if an earlier one ran elsewhere
    num_cached_tokens: int
    num_output_tokens: int  #: emitted so far, in attempts elsewhere too
    num_output_elsewhere: int
    max_tokens: int  #: in all
    attempt_tokens: int  #: known before the first step of the attempt that runs now
    expires_at: float


class Ledger:
    def __init__(self, lengths: OutputLengths, shares: RunningShares) -> None:
        self._lengths = lengths
        self._shares = shares
        self._charges: dict[str, Charge] = {}
        self._expiries: list[tuple[float, str]] = []
        self.num_lost_tokens = 0  #: computed by attempts that did not end their request
        self.num_aborted_tokens = 0  #: generated for requests that did not come to their end

    def __len__(self) -> int:
        return len(self._charges)

    def open(self, entry: Waiting) -> int:
        """The turn of `entry` has come. Returns what to charge: nothing if the request was charged before."""
        asked = entry.descriptor
        known = self._charges.get(asked.request_id)
        if known is not None:
            known.attempt_tokens = asked.num_prompt_tokens
            return 0
        is_first = not entry.is_migration
        cost = entry.cost if is_first else price(0, 0, entry.num_new_tokens)
        self._charges[asked.request_id] = Charge(
            tenant=asked.tenant,
            priority=asked.priority,
            cost=cost,
            held_tokens=asked.num_prompt_tokens + entry.num_new_tokens,
            num_prompt_tokens=asked.num_prompt_tokens if is_first else 0,
            num_cached_tokens=entry.num_cached_tokens if is_first else 0,
            num_output_tokens=asked.num_output_tokens,
            num_output_elsewhere=asked.num_output_tokens,
            max_tokens=asked.num_output_tokens + asked.max_tokens,
            attempt_tokens=asked.num_prompt_tokens,
            expires_at=entry.deadline + KEPT_S,
        )
        heapq.heappush(self._expiries, (entry.deadline + KEPT_S, asked.request_id))
        self._shares.take(asked.tenant, asked.num_prompt_tokens + entry.num_new_tokens)
        return cost

    def cancel(self, request_id: str) -> Charge | None:
        """The request will not run here, or not yet: what to give back, if it ran nowhere before."""
        charge = self._charges.get(request_id)
        if charge is None or charge.num_output_tokens > charge.num_output_elsewhere:
            return None
        return self._close(request_id)

    def settle(self, ended: Ended) -> tuple[Charge, int] | None:
        """An attempt is over. Returns the charge and what to add to it, once the request is over too."""
        charge = self._charges.get(ended.request_id)
        if charge is None:
            return None
        if charge.num_output_tokens == charge.num_output_elsewhere and charge.num_prompt_tokens:
            charge.num_cached_tokens = min(ended.num_cached_tokens, charge.num_prompt_tokens)
        charge.num_output_tokens += ended.num_output_tokens
        if not ended.finished:
            self.num_lost_tokens += charge.attempt_tokens - ended.num_cached_tokens + ended.num_output_tokens
            return None
        self._close(ended.request_id)
        if ended.outcome is not Outcome.OK:
            self.num_aborted_tokens += charge.num_output_tokens - charge.num_output_elsewhere
        else:
            self._lengths.learn(charge.tenant, charge.num_output_tokens, charge.max_tokens)
        num_output_tokens = charge.num_output_tokens - charge.num_output_elsewhere
        real = price(charge.num_prompt_tokens, charge.num_cached_tokens, num_output_tokens)
        return charge, real - charge.cost

    def expire(self, now: float) -> None:
        """Forget requests of whose end nobody told."""
        while self._expiries and self._expiries[0][0] <= now:
            _, request_id = heapq.heappop(self._expiries)
            charge = self._charges.get(request_id)
            if charge is not None and charge.expires_at <= now:
                self._close(request_id)
        if len(self._expiries) > 64 + 2 * len(self._charges):
            self._expiries = [(charge.expires_at, name) for name, charge in self._charges.items()]
            heapq.heapify(self._expiries)

    def _close(self, request_id: str) -> Charge:
        charge = self._charges.pop(request_id)
        self._shares.give(charge.tenant, charge.held_tokens)
        return charge

    def check_invariants(self) -> None:
        assert self._shares.held() == Counter(charge.tenant for charge in self._charges.values())
        assert {(charge.expires_at, name) for name, charge in self._charges.items()} <= set(self._expiries)
