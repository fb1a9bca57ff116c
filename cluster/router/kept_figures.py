"""KeptFigures: what gateways have last said of their numbers, and what the dead had counted.

A process that has ended is told of for a while longer, without what was true of its present: the scrape after its end
finds all that it has counted. After that its series end, as those of a target that is gone.
"""

import msgspec

from cluster.metrics.snapshot import Snapshot

REMEMBERED_S = 300.0  #: longer than anybody waits between two scrapes
MOST_DEAD = 256  #: a crash loop fills no memory


class KeptFigures:
    """Of one router shard."""

    def __init__(self) -> None:
        self._living: dict[str, tuple[Snapshot, float]] = {}
        self._dead: dict[str, tuple[Snapshot, float]] = {}

    def said(self, snapshot: Snapshot, now: float) -> None:
        """A gateway's newest numbers."""
        self._living[snapshot.process] = (snapshot, now)

    def gone(self, process: str, now: float, last: Snapshot | None = None) -> None:
        """That process has ended, or is linked elsewhere now; `last`: its numbers, if it has not said them here."""
        snapshot, at = self._living.pop(process, (last, now - (last.age_s if last is not None else 0.0)))
        if snapshot is not None:
            self._dead.pop(process, None)
            self._dead[process] = (snapshot.of_the_dead(), at)
        while len(self._dead) > MOST_DEAD:
            del self._dead[next(iter(self._dead))]

    def expire(self, now: float) -> None:
        """Forget those that have been dead for long."""
        for process in [process for process, (_, at) in self._dead.items() if now - at > REMEMBERED_S]:
            del self._dead[process]

    def all(self, now: float) -> list[Snapshot]:
        """Each with its age; who lives again is told of as living."""
        return [
            msgspec.structs.replace(snapshot, age_s=now - at)
            for snapshot, at in ({**self._dead, **self._living}).values()
        ]
