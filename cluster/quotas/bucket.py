"""Bucket: the algebra of one limit. `cluster.quotas.bucket.lua` is the same for Redis; a test compares them.

A limit of so many tokens (or requests) in a minute is a bucket that holds so many and fills as fast. What is asked for
is *held* until it is known how much of it was used: that is burned, the rest is released. What is held counts as being
in the bucket, so the bank, level and held together, never passes the capacity. Hence no interleaving uses more in `t`
seconds than capacity * (1 + t / 60), whenever what was held is used.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

WINDOW_S = 60.0  #: an empty bucket is full after so long
EPSILON = 1e-6  #: of a token: less is nothing


class Want(msgspec.Struct, frozen=True, array_like=True):
    """So much of a bucket."""

    key: str
    capacity: float
    amount: float


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """All of these or nothing. `inherits`: what gateways that are away hold is taken first."""

    wants: list[Want]
    inherits: bool = False


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """Whether it was granted, and what could be asked for now, of each bucket."""

    granted: bool
    usable: list[float]


class Change(msgspec.Struct, frozen=True, array_like=True):
    """What a gateway has done to a bucket since it last said so."""

    key: str
    capacity: float
    burned: float = 0.0  #: used, of what it holds; negative: it holds so much that the store has lost
    released: float = 0.0  #: of what it holds, not needed after all
    taken: float = 0.0  #: while it was alone


class Bucket:
    """One limit. Times are seconds of one clock that never goes back; `holders` are names."""

    __slots__ = ("_at", "_held", "_level")

    def __init__(self, capacity: float, at: float) -> None:
        """As if it had been empty at time 0."""
        self._level, self._at = min(capacity, capacity / WINDOW_S * at), at
        self._held: dict[str, float] = {}

    @property
    def bank(self) -> float:
        """Level and held."""
        return self._level + sum(self._held.values())

    def refill(self, capacity: float, at: float, holders: Collection[str], gone: Mapping[str, float]) -> None:
        """Up to now. What others than these hold is burned, as of when they were `gone` (unknown: long ago)."""
        burned = [name for name in self._held if name not in holders]
        for when, name in sorted((gone.get(name, at - WINDOW_S), name) for name in burned):
            self._fill(capacity, max(when, self._at))
            del self._held[name]
        self._fill(capacity, at)

    def _fill(self, capacity: float, at: float) -> None:
        filled = self._level + capacity / WINDOW_S * (at - self._at)
        self._level, self._at = min(filled, capacity - sum(self._held.values())), at

    def usable(self, floor: float, heirs_of: Iterable[str] = ()) -> float:
        """What could be held now; `floor` is left in the bucket."""
        return self._level - floor + sum(self._held.get(holder, 0.0) for holder in heirs_of)

    def hold(self, holder: str, amount: float, heirs_of: Iterable[str] = ()) -> None:
        """Put it aside, what `heirs_of` hold first."""
        self._held[holder] = self._held.get(holder, 0.0) + amount
        for dead in heirs_of:
            inherited = min(amount, self._held.get(dead, 0.0))
            if inherited > 0.0:
                self._held[dead] -= inherited
                amount -= inherited
        self._level -= amount

    def change(self, holder: str, change: Change) -> None:
        """Burn, release and take; never more than the holder holds."""
        held = self._held.get(holder, 0.0)
        burned = min(change.burned, held)
        released = min(max(change.released, 0.0), held - burned)
        rest = held - burned - released
        if rest > EPSILON:
            self._held[holder] = rest
        else:
            self._held.pop(holder, None)
        self._level += released - change.taken

    def is_forgettable(self, at: float) -> bool:
        """A new one would be just as full."""
        return not self._held and self._level >= 0.0 and at - self._at >= WINDOW_S


def decide(buckets: Sequence[Bucket], ask: Ask, holder: str, away_share: float, away: Collection[str]) -> Reply:
    """Grant or refuse, on buckets that are filled up to now. `away_share` of each bucket is not to be touched."""
    heirs_of = away if ask.inherits else ()
    floors = [away_share * want.capacity for want in ask.wants]
    granted = all(
        bucket.usable(floor, heirs_of) >= want.amount - EPSILON
        for bucket, floor, want in zip(buckets, floors, ask.wants, strict=True)
    )
    if granted:
        for bucket, want in zip(buckets, ask.wants, strict=True):
            bucket.hold(holder, want.amount, heirs_of)
    return Reply(granted, [bucket.usable(floor) for bucket, floor in zip(buckets, floors, strict=True)])
