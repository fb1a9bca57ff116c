"""HomeShard: the one router shard to which a replica announces itself. Events in, a number out.

A shard is live while its link is up and its pulse is heard. Silence is counted in this process's own ticks, so one that
was itself stopped for a while does not take all shards for dead when it goes on. Nobody goes back at once to a shard
that was lost: one that is silent because it has too much to do would get it all again, and be silent again.
"""

SILENT_TICKS = 12  #: so many ticks without a pulse and a shard is lost; at ten ticks a second 1.2 s
SETTLE_TICKS = 10  #: a shard that was lost must be live for so long before it is preferred to another one
REPLICAS_PER_SHARD = 8  #: with fewer, one more shard would only divide the room that a request may choose from


def preferred_shard(rank: int, num_replicas: int, num_shards: int) -> int:
    """The shard at which the replica of this rank, of so many of its model, is to be at home."""
    return rank % max(1, min(num_shards, num_replicas // REPLICAS_PER_SHARD))


class HomeShard:
    """Of `num_shards`, the preferred one while it is live and settled, else the next one after it, in a ring."""

    def __init__(self, num_shards: int, preferred: int) -> None:
        self._order = [(preferred + step) % num_shards for step in range(num_shards)]
        self._quiet: dict[int, int] = {}  #: ticks since the last pulse, of the shards that are linked
        self._doubtful: dict[int, int] = {}  #: ticks until they are settled, of the shards that were lost
        self._chosen: int | None = None

    def on_link(self, shard: int) -> None:
        """The link is up."""
        self._quiet[shard] = 0

    def on_lost(self, shard: int) -> None:
        """The link is down."""
        self._quiet.pop(shard, None)
        self._doubtful[shard] = SETTLE_TICKS

    def on_pulse(self, shard: int) -> None:
        if shard in self._quiet:
            self._quiet[shard] = 0

    def on_tick(self) -> None:
        """A tenth of a second of this process's life."""
        for shard in self._quiet:
            self._quiet[shard] += 1
            if not self._is_live(shard):
                self._doubtful[shard] = SETTLE_TICKS
            elif shard in self._doubtful:
                self._doubtful[shard] -= 1
                if not self._doubtful[shard]:
                    del self._doubtful[shard]

    def choose(self) -> int | None:
        """The shard to be announced to; None while no link is up. When all are silent, the one it was."""
        linked = [shard for shard in self._order if shard in self._quiet]
        live = [shard for shard in linked if self._is_live(shard)]
        settled = [shard for shard in live if shard not in self._doubtful or shard == self._chosen]
        if live:
            self._chosen = (settled or live)[0]
        elif self._chosen not in linked:
            self._chosen = linked[0] if linked else None
        return self._chosen

    def _is_live(self, shard: int) -> bool:
        return self._quiet[shard] <= SILENT_TICKS
