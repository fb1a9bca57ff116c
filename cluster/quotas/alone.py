"""Alone: what a gateway grants while it cannot reach the book: its own share of each limit, beginning with nothing."""

from cluster.quotas.bucket import Ask, Bucket, Change, Reply, Want, decide

_ME = "me"


class Alone:
    """The Nth part of every limit, from time `since` on."""

    def __init__(self, num_gateways: int, since: float) -> None:
        self.share = 1.0 / num_gateways
        self._since = since
        self._buckets: dict[str, Bucket] = {}
        self._taken: dict[str, Change] = {}

    def ask(self, ask: Ask, now: float) -> Reply:
        """Decide, on this share alone."""
        at = now - self._since
        buckets = [self._bucket(want.key, want.capacity, at) for want in ask.wants]
        reply = decide(buckets, Ask(ask.wants), _ME, 0.0, ())
        if reply.granted:
            for want in ask.wants:
                self._take(want)
        return reply

    def change(self, change: Change, now: float) -> None:
        """Burn and release what was granted here."""
        self._bucket(change.key, change.capacity, now - self._since).change(_ME, change)

    def debts(self) -> list[Change]:
        """What to tell the book on the return: what may have come out of this gateway's part of its bank."""
        return list(self._taken.values())

    def _bucket(self, key: str, capacity: float, at: float) -> Bucket:
        share = capacity * self.share
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(share, at)
        bucket.refill(share, at, (_ME,), {})
        return bucket

    def _take(self, want: Want) -> None:
        before = self._taken.get(want.key)
        taken = want.amount + (0.0 if before is None else before.taken)
        self._taken[want.key] = Change(want.key, want.capacity, taken=min(taken, want.capacity * self.share))
