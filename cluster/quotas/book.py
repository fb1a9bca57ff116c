"""Book: the buckets that all gateways share, kept by a router shard; in Redis `bucket.lua` keeps the same book.

Of N gateways each owns an Nth of every limit. Present, it adds that to the common pot: the book's clock, by which
buckets fill, runs at full speed while all are present and at half speed while half of them are; and the share of those
who are away stays in the bucket untouched. So a gateway that is cut off can go on with its Nth alone
(`cluster.quotas.alone`), nobody asks whether others can reach the book, and the limit holds all the same.

A gateway speaks in numbered turns, one at a time. The first one after a silence only says that it is back: from the
next one on it counts, and that one says what it has taken while it was alone.
"""

from dataclasses import dataclass, field
from math import inf

from cluster.frames import QuotaAnswer, QuotaTurn
from cluster.quotas.bucket import EPSILON, WINDOW_S, Bucket, decide

LEASE_S = 2.0  #: a gateway that says nothing for so long is away
FORGET_S = 10.0  #: what one held that is away for so long counts as burned


@dataclass(slots=True)
class _Member:
    seen: float = -inf
    counts: bool = False
    number: int = 0
    answer: QuotaAnswer | None = None


@dataclass(slots=True)
class Book:
    """Times are seconds of a steady clock."""

    _members: dict[str, _Member] = field(default_factory=dict)
    _gone: dict[str, float] = field(default_factory=dict)  #: who is forgotten, and when by the clock
    _buckets: dict[str, Bucket] = field(default_factory=dict)
    _clock: float = 0.0  #: by which buckets fill
    _updated: float = 0.0
    _epoch: str = ""  #: names this book; another one knows nothing of what this one has granted
    _began_full: bool = False
    _num_gateways: int = 1

    def turn(self, name: str, turn: QuotaTurn, now: float) -> QuotaAnswer | None:
        """What gateway `name` is answered; None if it has said something newer already."""
        member = self._members.setdefault(name, _Member())
        if turn.number <= member.number:
            return member.answer if turn.number == member.number else None
        self._num_gateways = turn.num_gateways
        self._check_epoch(name, turn)
        self._tick(now)
        self._forget_the_lost(name, now)
        is_back = now - member.seen > LEASE_S
        member.seen, member.counts, member.number = now, not is_back, turn.number
        for change in turn.changes:
            self._bucket(change.key, change.capacity).change(name, change)
        replies = []
        if not is_back:
            present = {other for other, each in self._members.items() if each.counts and now - each.seen <= LEASE_S}
            away_share = max(0.0, 1.0 - len(present) / turn.num_gateways)
            for ask in turn.asks:
                buckets = [self._bucket(want.key, want.capacity) for want in ask.wants]
                replies.append(decide(buckets, ask, name, away_share, self._members.keys() - present))
        member.answer = QuotaAnswer(turn.number, self._epoch, self._clock, is_back, replies)
        return member.answer

    def lost(self, name: str, now: float) -> None:
        """The connection to this gateway is lost: it is away from now on."""
        if name in self._members:
            self._tick(now)
            self._members[name].counts = False
            self._members[name].seen = min(self._members[name].seen, now - LEASE_S - EPSILON)

    def sweep(self) -> None:
        """Forget buckets that are as good as new."""
        for key in [key for key, bucket in self._buckets.items() if bucket.is_forgettable(self._clock)]:
            del self._buckets[key]

    def _bucket(self, key: str, capacity: float) -> Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(capacity, self._clock)
        bucket.refill(capacity, self._clock, self._members, self._gone)
        return bucket

    def _check_epoch(self, name: str, turn: QuotaTurn) -> None:
        """A new book begins full for gateways that are new too, and empty if there was one whose grants are lost."""
        is_other = turn.epoch not in ("", self._epoch)
        has_lost = turn.epoch == self._epoch and turn.seen > self._clock + EPSILON
        if not self._epoch or has_lost or (is_other and self._began_full):
            self._began_full = not turn.epoch
            self._epoch = f"{name}/{turn.number}"
            self._clock = WINDOW_S if self._began_full else 0.0
            self._buckets.clear()
            self._gone.clear()

    def _tick(self, now: float) -> None:
        """Run the clock up to now by the time that gateways were present."""
        begun = self._updated
        present_s = sum(
            max(0.0, min(now, member.seen + LEASE_S) - begun) for member in self._members.values() if member.counts
        )
        self._clock += min(max(0.0, now - begun), present_s / self._num_gateways)
        self._updated = max(begun, now)

    def _forget_the_lost(self, speaker: str, now: float) -> None:
        lost = [name for name, member in self._members.items() if member.seen < now - FORGET_S and name != speaker]
        for name in lost:
            del self._members[name]
            self._gone[name] = self._clock
        self._gone.pop(speaker, None)
        for name in [name for name, when in self._gone.items() if when < self._clock - WINDOW_S]:
            del self._gone[name]
