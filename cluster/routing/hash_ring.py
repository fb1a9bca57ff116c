"""HashRing: a consistent hash of keys to replicas; who comes or goes moves only its own share of the keys."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from hashlib import blake2b

from cluster.routing.replica_state import ReplicaState

POINTS = 64  #: of each replica on the ring; more make the shares more equal


class HashRing:
    def __init__(self) -> None:
        self._points: list[tuple[int, int, ReplicaState]] = []  # (place, serial, replica)

    def add(self, replica: ReplicaState) -> None:
        for point in _points(replica):
            insort(self._points, point)

    def drop(self, replica: ReplicaState) -> None:
        for point in _points(replica):
            del self._points[bisect_left(self._points, point[:2])]

    def from_key(self, key: bytes) -> Iterator[ReplicaState]:
        """Replicas in the order of this key, point by point once around; one may come up again."""
        points = self._points
        start = bisect_left(points, (_place(key), -1))
        for offset in range(len(points)):
            yield points[(start + offset) % len(points)][2]


def _points(replica: ReplicaState) -> list[tuple[int, int, ReplicaState]]:
    names = (f"{replica.replica_id}/{number}".encode() for number in range(POINTS))
    return [(_place(name), replica.serial, replica) for name in names]


def _place(name: bytes) -> int:
    return int.from_bytes(blake2b(name, digest_size=8).digest())
