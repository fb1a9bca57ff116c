"""Condemned: requests that have killed replicas, by digest, for ten minutes; bounded, the oldest go first."""

from collections import OrderedDict

CONDEMNED_S = 600.0
MAX_CONDEMNED = 4096


class Condemned:
    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def add(self, digest: bytes, now: float) -> None:
        self._until.pop(digest, None)
        self._until[digest] = now + CONDEMNED_S
        if len(self._until) > MAX_CONDEMNED:
            self._until.popitem(last=False)

    def holds(self, digest: bytes, now: float) -> bool:
        return bool(digest) and self._until.get(digest, now) > now

    def expire(self, now: float) -> None:
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
