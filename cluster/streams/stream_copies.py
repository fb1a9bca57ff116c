"""StreamCopies: the copies of this gateway's streams in the router shards, and how another gateway's are fetched.

A copy lies in one shard, chosen by the stream's id among those of other hosts, where there are any. It is sent ahead of
what the client is sent, all streams' news of one wake-up in one frame; when the shard is lost, the whole copy goes to
another one, or to its successor.
"""

import asyncio
from collections.abc import Callable, Sequence

from cluster.errors import StreamsUnavailable
from cluster.frames import Fetch, Journal, Keep, Release, Stored, Taken
from cluster.router.journal_store import MAX_STREAM_BYTES
from cluster.streams.inquiry import Inquiry
from cluster.streams.link import Link
from cluster.streams.shard_choice import choose_shard


class Copy:
    """One stream that this gateway runs, and what a shard is told of it."""

    def __init__(self, copies: "StreamCopies", keep: Keep) -> None:
        self._copies, self.keep = copies, keep
        self.journal = list(keep.journal)
        self.shard: int | None = None  #: where it lies
        self.is_taken = False  #: another gateway, or another connection, has resumed it
        self.on_taken: Callable[[], object] | None = None
        self.ended = asyncio.Event()
        self._num_bytes = sum(map(len, self.journal))

    def add(self, entry: bytes) -> None:
        """Some more was emitted; the shard is told before any task runs that this wake-up has made ready."""
        self._num_bytes += len(entry)
        if self._num_bytes <= MAX_STREAM_BYTES:
            self.journal.append(entry)
            self._copies.post(self, entry)

    def end(self) -> None:
        """This gateway runs it no longer; from now on its time counts."""
        self._copies.release(self)
        self.ended.set()


class StreamCopies:
    """Of one gateway. `ttl_s`: how long a stream that nobody runs can be resumed; `num_shards`: all that are."""

    def __init__(self, ttl_s: float, num_shards: int = 1) -> None:
        self._ttl_s, self._num_shards = ttl_s, num_shards
        self._copies: dict[str, Copy] = {}
        self._ending: dict[str, Copy] = {}  # taken; their tasks have yet to end
        self._links: dict[int, Link] = {}
        self._silent: set[int] = set()
        self._beside: set[int] = set()  #: shards that this gateway's host would take with it
        self._pending: dict[int, list[tuple[str, int, bytes]]] = {}
        self._flush_is_due = False
        self._fetches: dict[int, Inquiry[Stored]] = {}
        self._num_fetches = 0

    @property
    def num_running(self) -> int:
        """Streams with a copy that this gateway runs."""
        return len(self._copies)

    def begin(
        self, stream: str, tenant: str, model: str, call: bytes, epoch: int = 0, journal: Sequence[bytes] = ()
    ) -> Copy:
        """Have a stream kept from now on."""
        keep = Keep(stream, epoch, tenant, self._ttl_s, call, list(journal), model)
        copy = self._copies[stream] = Copy(self, keep)
        self._place(copy)
        return copy

    def flush(self) -> None:
        """Send what waits to be sent."""
        if not self._pending:
            return
        pending, self._pending = self._pending, {}
        for shard, entries in pending.items():
            link = self._links.get(shard)
            if link is not None:
                link.send(Journal(entries))

    async def fetch(self, stream: str, tenant: str, models: list[str]) -> Stored | None:
        """Take the tenant's stream of one of these models over from whoever runs it, as complete as any shard has it.

        None, and it stays where it is, if no shard has such a one.

        From then on this gateway does not run it either. StreamsUnavailable if one may have it that does not answer.
        """
        shards = self._alive()
        found, num_answers = await self._ask(shards, stream, tenant, models) if shards else ([], 0)
        if not found and num_answers < self._num_shards:
            raise StreamsUnavailable("Not all copies of streams can be reached just now; try again.", None, 1.0)
        stored = max(found, key=lambda stored: (stored.epoch, len(stored.journal)), default=None)
        running = self._copies.get(stream)
        if stored is not None and running is not None:
            self._take(running)
        if stored is not None and stream in self._ending:
            await self._ending[stream].ended.wait()
        return stored

    async def _ask(self, shards: set[int], stream: str, tenant: str, models: list[str]) -> tuple[list[Stored], int]:
        """What was found, and how many shards have answered."""
        self.flush()
        self._num_fetches += 1
        ticket = self._num_fetches
        fetch = self._fetches[ticket] = Inquiry(shards)
        try:
            for shard in shards:
                self._links[shard].send(Fetch(ticket, stream, tenant, models))
            await fetch.wait()
        finally:
            del self._fetches[ticket]
        return fetch.found, fetch.num_answers

    # What copies do

    def post(self, copy: Copy, entry: bytes) -> None:
        if copy.shard is None or self._copies.get(copy.keep.stream) is not copy:
            return
        self._pending.setdefault(copy.shard, []).append((copy.keep.stream, copy.keep.epoch, entry))
        if not self._flush_is_due:
            self._flush_is_due = True
            asyncio.get_running_loop().call_soon(self._flush_soon)

    def release(self, copy: Copy) -> None:
        if self._ending.get(copy.keep.stream) is copy:
            del self._ending[copy.keep.stream]
        if self._copies.get(copy.keep.stream) is not copy:
            return
        del self._copies[copy.keep.stream]
        self.flush()
        link = self._links.get(copy.shard) if copy.shard is not None else None
        if link is not None:
            link.send(Release(copy.keep.stream, copy.keep.epoch))

    # What this gateway hears

    def on_router(self, shard: int, link: Link, is_on_this_host: bool = False) -> None:
        """A shard is there (again), with nothing of ours: copy to it what lies there, nowhere, or less safely."""
        self._links[shard] = link
        self._silent.discard(shard)
        self._pending.pop(shard, None)
        (self._beside.add if is_on_this_host else self._beside.discard)(shard)
        for copy in self._copies.values():
            if copy.shard in (None, shard):
                self._place(copy)
            elif not is_on_this_host and copy.shard in self._beside:
                self._links[copy.shard].send(Release(copy.keep.stream, copy.keep.epoch))
                self._place(copy)

    def on_router_lost(self, shard: int) -> None:
        """Copy what lay there to another shard."""
        self._links.pop(shard, None)
        self._silent.discard(shard)
        self._leave(shard)

    def on_live_shards(self, live: set[int]) -> None:
        """Those of the connected shards that speak; what lies at the others is copied to these."""
        silent = self._links.keys() - live
        newly, self._silent = silent - self._silent, silent
        for shard in newly:
            self._leave(shard)

    def _leave(self, shard: int) -> None:
        self._pending.pop(shard, None)
        for fetch in self._fetches.values():
            fetch.gone(shard)
        for copy in self._copies.values():
            if copy.shard == shard:
                self._place(copy)

    def on_stored(self, shard: int, stored: Stored) -> None:
        fetch = self._fetches.get(stored.ticket)
        if fetch is not None:
            fetch.answered(shard, stored if stored.call else None)

    def on_taken(self, taken: Taken) -> None:
        copy = self._copies.get(taken.stream)
        if copy is not None and copy.keep.epoch <= taken.epoch:
            self._take(copy)

    def _alive(self) -> set[int]:
        return self._links.keys() - self._silent

    def _take(self, copy: Copy) -> None:
        del self._copies[copy.keep.stream]
        self._ending[copy.keep.stream] = copy
        copy.is_taken = True
        if copy.on_taken is not None:
            copy.on_taken()

    def _place(self, copy: Copy) -> None:
        keep = copy.keep
        copy.shard = choose_shard(keep.stream.encode(), (self._alive() - self._beside) or self._alive())
        if copy.shard is not None:
            whole = Keep(keep.stream, keep.epoch, keep.tenant, keep.ttl_s, keep.call, copy.journal, keep.model)
            self._links[copy.shard].send(whole)

    def _flush_soon(self) -> None:
        self._flush_is_due = False
        self.flush()
