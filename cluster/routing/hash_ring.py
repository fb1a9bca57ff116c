"""HashRing: a consistent hash of keys to replicas; who comes or goes moves only its own share of the keys."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from hashlib import blake2b

from cluster.routing.replica_state import ReplicaState

POINTS = 64  #: of each replica on the ring; more make the shares more equal


class HashRing:
    def __init__(self, replicas: Iterable[ReplicaState] = ()) -> None:
        self._points: list[tuple[int, int, ReplicaState]] = []  # (place, serial, replica)
        for replica in replicas:
            self._points += _points(replica)
        self._points.sort(key=lambda point: point[:2])

    def add(self, replica: ReplicaState) -> None:
        for point in _points(replica):
            insort(self._points, point)

    def drop(self, replica: ReplicaState) -> None:
        for point in _points(replica):
            del self._points[bisect_left(self._points, point[:2])]

    def from_key(self, key: bytes) -> Iterator[ReplicaState]:
        """Replicas in the order of this key, point by point once around; one may come up again."""
        points = self._points
        start = bisect_left(points, (_place(key),))
        for offset in range(len(points)):
            yield points[(start + offset) % len(points)][2]


def _points(replica: ReplicaState) -> list[tuple[int, int, ReplicaState]]:
    """A digest gives eight of them."""
    digests = (blake2b(b"%d/" % number + replica.replica_id.encode()).digest() for number in range(POINTS // 8))
    places = (digest[start : start + 8] for digest in digests for start in range(0, 64, 8))
    return [(int.from_bytes(place), replica.serial, replica) for place in places]


def _place(name: bytes) -> int:
    return int.from_bytes(blake2b(name, digest_size=8).digest())
