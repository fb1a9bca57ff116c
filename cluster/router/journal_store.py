"""JournalStore: the streams that a router shard keeps for whoever resumes them. Knows nothing of what they say.

A stream that a connected gateway runs stays as long as there is room; one that has ended, or whose gateway was lost,
stays for its `ttl_s`. Over `max_bytes` the streams that nobody runs go first, then those silent longest. Every change
of hands raises the stream's epoch: what an earlier owner still sends is dropped, and it is told to stop.
"""

from cluster.frames import Fetch, FromRouter, Journal, Keep, Release, Stored, Taken

MAX_STREAM_BYTES = 16 * 1024 * 1024  #: of one stream; what would go beyond is not kept, and computed again on resume
_ENTRY_BYTES = 48  #: what Python needs to hold one entry
_STREAM_BYTES = 600

Outbox = list[tuple[str, FromRouter]]  #: (gateway name, message)


class _Kept:
    __slots__ = ("epoch", "expires_at", "gateway", "journal", "keep", "num_bytes")

    def __init__(self, keep: Keep, gateway: str) -> None:
        self.keep, self.epoch, self.journal = keep, keep.epoch, list(keep.journal)
        self.gateway: str | None = gateway  #: who runs it; None: nobody
        self.expires_at = 0.0  #: while nobody runs it
        self.num_bytes = _STREAM_BYTES + len(keep.call) + sum(len(entry) + _ENTRY_BYTES for entry in self.journal)


class JournalStore:
    """Methods named `on_...` take an event and return the messages it causes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._running: dict[str, _Kept] = {}  # least recently heard of first
        self._released: dict[str, _Kept] = {}  # longest without an owner first
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._running) + len(self._released)

    def on_frame(self, gateway: str, frame: Keep | Journal | Release | Fetch, now: float) -> Outbox:
        """Whatever a gateway says of streams."""
        match frame:
            case Keep():
                return self.on_keep(gateway, frame)
            case Journal():
                self.on_journal(frame)
            case Release():
                self.on_release(frame, now)
            case Fetch():
                return self.on_fetch(gateway, frame, now)
        return []

    def on_keep(self, gateway: str, keep: Keep) -> Outbox:
        """Take a stream in, or tell the sender that it has passed into other hands."""
        outbox: Outbox = []
        known = self._find(keep.stream)
        if known is not None:
            if known.epoch > keep.epoch or (known.epoch == keep.epoch and known.gateway not in (None, gateway)):
                return [(gateway, Taken(keep.stream, keep.epoch))]
            if known.gateway not in (None, gateway):
                outbox.append((known.gateway, Taken(keep.stream, known.epoch)))
            self._drop(keep.stream)
        kept = self._running[keep.stream] = _Kept(keep, gateway)
        self.num_bytes += kept.num_bytes
        self._make_room()
        return outbox

    def on_journal(self, journal: Journal) -> None:
        """Append; entries of streams not kept, or of an earlier epoch, are dropped."""
        for stream, epoch, entry in journal.entries:
            kept = self._running.pop(stream, None)
            if kept is None:
                continue
            self._running[stream] = kept
            size = len(entry) + _ENTRY_BYTES
            if kept.epoch == epoch and kept.num_bytes + size <= MAX_STREAM_BYTES + len(kept.keep.call):
                kept.journal.append(entry)
                kept.num_bytes += size
                self.num_bytes += size
        self._make_room()

    def on_release(self, release: Release, now: float) -> None:
        """Its gateway runs it no longer."""
        kept = self._running.get(release.stream)
        if kept is not None and kept.epoch == release.epoch:
            self._release(kept, now)

    def on_gateway_lost(self, gateway: str, now: float) -> None:
        """Nobody runs its streams any more."""
        for kept in [kept for kept in self._running.values() if kept.gateway == gateway]:
            self._release(kept, now)

    def on_fetch(self, gateway: str, fetch: Fetch, now: float) -> Outbox:
        """Hand a stream over to `gateway`. Whose it is not, and what is not kept, look the same."""
        kept = self._find(fetch.stream)
        expired = kept is not None and kept.gateway is None and kept.expires_at <= now
        if kept is None or expired or not _may_fetch(fetch, kept.keep):
            return [(gateway, Stored(fetch.ticket))]
        outbox: Outbox = []
        if kept.gateway is not None:
            outbox.append((kept.gateway, Taken(fetch.stream, kept.epoch)))
        kept.epoch += 1
        self._release(kept, now)
        outbox.append((gateway, Stored(fetch.ticket, kept.epoch, kept.keep.call, kept.journal)))
        return outbox

    def on_tick(self, now: float) -> None:
        """Forget what has had its time."""
        for stream, kept in list(self._released.items()):
            if kept.expires_at > now:
                break  # those behind it were released later
            self._drop(stream)

    def _find(self, stream: str) -> _Kept | None:
        return self._running.get(stream) or self._released.get(stream)

    def _release(self, kept: _Kept, now: float) -> None:
        stream = kept.keep.stream
        self._running.pop(stream, None)
        self._released.pop(stream, None)
        self._released[stream] = kept
        kept.gateway, kept.expires_at = None, now + kept.keep.ttl_s

    def _drop(self, stream: str) -> None:
        kept = self._running.pop(stream, None) or self._released.pop(stream)
        self.num_bytes -= kept.num_bytes

    def _make_room(self) -> None:
        while self.num_bytes > self._max_bytes and len(self):
            self._drop(next(iter(self._released or self._running)))


def _may_fetch(fetch: Fetch, keep: Keep) -> bool:
    return keep.tenant == fetch.tenant and (fetch.models is None or keep.model in fetch.models)
