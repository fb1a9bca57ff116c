"""ReplicaPeers: what a gateway knows of each replica: who announces it, whether it is connected, what runs there."""

from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from cluster.frames import Frame, ReplicaInfo
from cluster.streams.flight import Flight
from cluster.streams.link import Link
from cluster.streams.watchdog import HOPELESS_S, LivedTime, ReplicaWatch
from engine.config import EngineInfo

IDLE_SILENCE_S = 2.5  #: a replica beats once a second for a gateway that has nothing there


class Standing(NamedTuple):
    """How a model's replicas stand, seen from this gateway."""

    num_usable: int  #: that take requests and have been heard of lately
    progress: int  #: of their engines, in all: moves while any computes
    patience_s: float  #: the longest honest step of any


class ReplicaPeer:
    """One connected replica. `is_left`: it was found frozen or stuck, and nothing is submitted until it moves."""

    __slots__ = ("flights", "is_left", "link", "watch")

    def __init__(self, link: Link, time: LivedTime) -> None:
        self.link = link
        self.flights: dict[str, Flight] = {}  #: that run there, by request id
        self.watch = ReplicaWatch(time)
        self.is_left = False

    def begin(self, flight: Flight) -> None:
        if not self.flights:
            self.watch.begin()
        self.flights[flight.request_id] = flight


class ReplicaPeers:
    """All of them, by replica id. A replica is announced by one shard or another, or for a while by none."""

    def __init__(self, time: LivedTime) -> None:
        self._time = time
        self.announced: dict[str, ReplicaInfo] = {}
        self.connected: dict[str, ReplicaPeer] = {}
        self.facts: dict[str, EngineInfo] = {}  #: of each model's engines, as last announced
        self._announcers: dict[str, set[int]] = {}
        #: by model and weights revision (empty: all): how many replicas each shard announces
        self._homes: dict[tuple[str, str], Counter[int]] = {}
        self._unusable: list[str] | None = None  #: None: to be found out anew

    def announce(self, shard: int, replica: ReplicaInfo) -> bool:
        """Returns whether the shard had none of its model and weights before."""
        self.announced[replica.replica_id] = replica
        self.facts[replica.model] = replica.engine
        announcers = self._announcers.setdefault(replica.replica_id, set())
        self._unusable = None
        if shard in announcers:
            return False
        announcers.add(shard)
        homes = [self._homes.setdefault(kind, Counter()) for kind in _kinds(replica)]
        for counts in homes:
            counts[shard] += 1
        return any(counts[shard] == 1 for counts in homes)

    def retract(self, shard: int, replica_id: str) -> bool:
        """This shard has lost it; it stays known while another shard announces it. Returns whether it was its last."""
        was_last = False
        announcers = self._announcers.get(replica_id, set())
        if shard in announcers:
            announcers.discard(shard)
            for kind in _kinds(self.announced[replica_id]):
                homes = self._homes[kind]
                homes[shard] -= 1
                if not homes[shard]:
                    del homes[shard]
                    was_last = True
                if not homes:
                    del self._homes[kind]
        if not announcers:
            self._announcers.pop(replica_id, None)
            self.announced.pop(replica_id, None)
            self._unusable = None
        return was_last

    def retract_all(self, shard: int) -> None:
        """The shard's connection is gone; it will say again what it knows."""
        for replica_id in [replica_id for replica_id, shards in self._announcers.items() if shard in shards]:
            self.retract(shard, replica_id)

    def homes(self, model: str, weights_revision: str) -> Collection[int]:
        """The shards that have replicas of the model, with these weights if they are named."""
        return self._homes.get((model, weights_revision), ())

    def connect(self, replica_id: str, link: Link) -> None:
        self.connected[replica_id] = ReplicaPeer(link, self._time)
        self._unusable = None

    def disconnect(self, replica_id: str) -> list[Flight]:
        """Returns what ran there."""
        peer = self.connected.pop(replica_id, None)
        self._unusable = None
        return [] if peer is None else list(peer.flights.values())

    def end(self, flight: Flight, farewell: Frame | None) -> None:
        """The flight's attempt there is over; tell the replica so, if it does not know."""
        peer = self.connected.get(flight.replica_id or "")
        if peer is not None:
            peer.flights.pop(flight.request_id, None)
            if farewell is not None:
                peer.link.send(farewell)

    def set_left(self, peer: ReplicaPeer, is_left: bool) -> None:
        peer.is_left = is_left
        self._unusable = None

    def close_hopeless(self) -> None:
        """Nothing for so long: the connection may be dead on the other side alone. Its loss is told as any other."""
        for peer in self.connected.values():
            if peer.watch.silent_s > HOPELESS_S:
                peer.link.close()

    def accused(self) -> list[tuple[str, str, ReplicaPeer]]:
        """(replica, what is wrong, its peer) of those that owe something and were not left yet."""
        return [
            (replica_id, why, peer)
            for replica_id, peer in self.connected.items()
            if peer.flights and not peer.is_left and (why := peer.watch.accusation())
        ]

    def unusable(self) -> list[str]:
        """Announced, but not to be submitted to."""
        if self._unusable is None:
            self._unusable = [replica_id for replica_id in self.announced if self.usable(replica_id) is None]
        return self._unusable

    def usable(self, replica_id: str) -> ReplicaPeer | None:
        """The replica, if it is connected and was not left."""
        peer = self.connected.get(replica_id)
        return peer if peer is not None and peer.link.is_open and not peer.is_left else None

    def standing(self, model: str) -> Standing:
        """Looks at every replica."""
        names = [replica_id for replica_id, replica in self.announced.items() if replica.model == model]
        watches = [peer.watch for name in names if (peer := self.usable(name)) is not None]
        num_usable = sum(watch.takes_requests and watch.silent_s < IDLE_SILENCE_S for watch in watches)
        patience_s = max((watch.patience_s for watch in watches), default=0.0)
        return Standing(num_usable, sum(watch.progress for watch in watches), patience_s)

    def others(self, model: str, avoid: list[str], weights_revision: str) -> bool:
        """Whether some replica could go on with a request that these have failed."""
        return any(
            replica.model == model
            and replica.replica_id not in avoid
            and weights_revision in ("", replica.engine.weights_revision)
            for replica in self.announced.values()
        )


def _kinds(replica: ReplicaInfo) -> list[tuple[str, str]]:
    """What a request may ask for and get this replica: (model, weights revision)."""
    return [(replica.model, ""), (replica.model, replica.engine.weights_revision)]
