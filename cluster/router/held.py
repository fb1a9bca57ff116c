"""Held: requests whose turn has come and that no replica can take yet, until one can.

*Reserved*: a replica gets nothing else until the request fits there. *Parked*: no replica is allowed for it at all (it
avoids those that are open, or asks for other weights); it is looked at again before the queue. A request is in one of
the two or in neither.
"""

from collections.abc import Iterator

from cluster.router.waiting import Key, Waiting
from cluster.routing.fleet import Fleet
from cluster.routing.replica_state import ReplicaState


class Held:
    """Knows who is held; the queue knows that they still wait."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._parked: dict[str, dict[Key, Waiting]] = {}  # by weights revision asked for; first to be looked at first
        self._reserved: dict[Key, Waiting] = {}

    @property
    def num_reserved(self) -> int:
        return len(self._reserved)

    @property
    def has_parked(self) -> bool:
        return bool(self._parked)

    def first_parked(self, revision: str) -> Waiting | None:
        """Of those that ask for these weights, who is looked at next."""
        parked = self._parked.get(revision)
        return next(iter(parked.values())) if parked else None

    def parked(self) -> Iterator[Waiting]:
        return (entry for parked in self._parked.values() for entry in parked.values())

    def park(self, entry: Waiting) -> None:
        self._parked.setdefault(entry.descriptor.weights_revision, {})[entry.key] = entry

    def reserve(self, entry: Waiting, replica: ReplicaState) -> None:
        """Keep `replica` for this request alone."""
        self._unpark(entry)
        replica.reserved_for, entry.reserved = entry, replica
        self._reserved[entry.key] = entry
        self._fleet.refresh(replica)

    def let_go(self, entry: Waiting) -> None:
        """It is held no longer, if it was."""
        if entry.reserved is not None:
            replica, entry.reserved = entry.reserved, None
            replica.reserved_for = None
            del self._reserved[entry.key]
            if self._fleet.replicas.get(replica.replica_id) is replica:
                self._fleet.refresh(replica)
        self._unpark(entry)

    def release(self, replica: ReplicaState | None) -> None:
        """Who holds this replica's reservation is looked at again."""
        if replica is not None and replica.reserved_for is not None:
            entry = replica.reserved_for
            self.let_go(entry)
            self.park(entry)

    def reconsider(self) -> None:
        """All reservations are thought over."""
        for entry in list(self._reserved.values()):
            self.release(entry.reserved)

    def _unpark(self, entry: Waiting) -> None:
        revision = entry.descriptor.weights_revision
        parked = self._parked.get(revision)
        if parked is not None and parked.pop(entry.key, None) is not None and not parked:
            del self._parked[revision]

    def check_invariants(self, num_held: int) -> None:
        """`num_held`: requests of the queue that stand outside of its order."""
        held = [*self._reserved.values(), *self.parked()]
        assert all(entry.is_queued and entry.had_turn for entry in held)
        assert len({entry.key for entry in held}) == len(held)
        assert len(held) == num_held, "a request is neither in the order nor held"
        assert all(
            entry.reserved is not None and entry.reserved.reserved_for is entry for entry in self._reserved.values()
        )
