"""HomeShard: the one router shard to which a replica announces itself. Events in, a number out.

A shard is live while its link is up and its pulse is heard. Silence is counted in this process's own ticks, so one that
was itself stopped for a while does not take all shards for dead when it goes on.
"""

SILENT_TICKS = 12  #: so many ticks without a pulse and a shard is lost; at ten ticks a second 1.2 s
REPLICAS_PER_SHARD = 8  #: with fewer, one more shard would only divide the room that a request may choose from


def preferred_shard(rank: int, num_replicas: int, num_shards: int) -> int:
    """The shard at which the replica of this rank, of so many of its model, is to be at home."""
    return rank % max(1, min(num_shards, num_replicas // REPLICAS_PER_SHARD))


class HomeShard:
    """Of `num_shards`, the preferred one while it is live, else the next live one after it, in a ring."""

    def __init__(self, num_shards: int, preferred: int) -> None:
        self._order = [(preferred + step) % num_shards for step in range(num_shards)]
        self._quiet: dict[int, int] = {}  #: ticks since the last pulse, of the shards that are linked
        self._chosen: int | None = None

    def on_link(self, shard: int) -> None:
        """The link is up."""
        self._quiet[shard] = 0

    def on_lost(self, shard: int) -> None:
        """The link is down."""
        self._quiet.pop(shard, None)

    def on_pulse(self, shard: int) -> None:
        if shard in self._quiet:
            self._quiet[shard] = 0

    def on_tick(self) -> None:
        """A tenth of a second of this process's life."""
        for shard in self._quiet:
            self._quiet[shard] += 1

    def choose(self) -> int | None:
        """The shard to be announced to; None while no link is up. When all are silent, the one it was."""
        linked = [shard for shard in self._order if shard in self._quiet]
        live = [shard for shard in linked if self._quiet[shard] <= SILENT_TICKS]
        if live:
            self._chosen = live[0]
        elif self._chosen not in linked:
            self._chosen = linked[0] if linked else None
        return self._chosen
