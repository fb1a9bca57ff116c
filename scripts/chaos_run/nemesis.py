"""The nemesis: which fault comes next, to whom, and when the cluster is whole enough. Decides, does nothing.

The same seed gives the same sequence of kinds and waits; the targets depend on who is there.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    KILL_REPLICA = "kill-replica"
    FREEZE_REPLICA = "freeze-replica"
    DRAIN_REPLICA = "drain-replica"
    KILL_RANK = "kill-rank"
    FREEZE_RANK = "freeze-rank"
    REDEPLOY = "redeploy"
    KILL_SHARD = "kill-shard"
    KILL_GATEWAY = "kill-gateway"
    KILL_PROXY = "kill-proxy"
    KILL_CONTROLLER = "kill-controller"


#: How often each kind comes, relative to the others.
WEIGHTS: dict[Kind, float] = {
    Kind.KILL_REPLICA: 34,
    Kind.FREEZE_REPLICA: 18,
    Kind.DRAIN_REPLICA: 14,
    Kind.KILL_SHARD: 14,
    Kind.KILL_GATEWAY: 12,
    Kind.KILL_CONTROLLER: 6,
    Kind.REDEPLOY: 2,
    Kind.KILL_PROXY: 10,
    Kind.KILL_RANK: 34,
    Kind.FREEZE_RANK: 18,
}
FREEZES = (Kind.FREEZE_REPLICA, Kind.FREEZE_RANK)


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the served app; `name` is what the router or Ray calls it."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The processes that are there and do their work."""

    replicas: Sequence[Process] = ()
    gateways: Sequence[Process] = ()
    shards: Sequence[Process] = ()
    controllers: Sequence[Process] = ()
    proxies: Sequence[Process] = ()
    ranks: Sequence[Process] = ()  #: of replicas that have many
    is_deploying: bool = False

    def counts(self) -> str:
        names = ("replicas", "gateways", "shards")
        return ", ".join(f"{len(getattr(self, name))} {name}" for name in names)


@dataclass(slots=True)
class Fault:
    """One fault as it was done. A frozen process is set free, or killed, after `hold_s`."""

    kind: Kind
    target: Process | None
    at: float = 0.0
    hold_s: float = 0.0
    ends_in_kill: bool = False

    @property
    def over_at(self) -> float:
        return self.at + self.hold_s

    def __str__(self) -> str:
        frozen = f" for {self.hold_s:.1f} s, then {'killed' if self.ends_in_kill else 'freed'}" if self.hold_s else ""
        return str(self.kind) + (f" {self.target.name} (pid {self.target.pid})" if self.target else "") + frozen


@dataclass(frozen=True, slots=True)
class Whole:
    """What must be there before the next fault."""

    replicas: int = 2
    gateways: int = 1
    shards: int = 1

    def is_met(self, view: ClusterView, kind: Kind) -> bool:
        """Whether somebody is left to serve while this fault is going on."""
        if view.is_deploying or (kind is Kind.REDEPLOY and not view.controllers):
            return False
        return (
            len(view.replicas) >= self.replicas
            and len(view.gateways) >= self.gateways + (kind is Kind.KILL_GATEWAY)
            and len(view.shards) >= self.shards + (kind is Kind.KILL_SHARD)
        )


class Nemesis:
    """Draws faults one after another."""

    def __init__(self, seed: int, weights: Mapping[Kind, float], spacing_s: tuple[float, float] = (0.3, 1.2)) -> None:
        self._draw = random.Random(f"{seed}/nemesis")
        self._kinds, self._weights = list(weights), list(weights.values())
        self._spacing_s = spacing_s

    def next_kind(self) -> Kind:
        return self._draw.choices(self._kinds, self._weights)[0]

    def pause_s(self) -> float:
        """Between a whole cluster and the next fault."""
        return self._draw.uniform(*self._spacing_s)

    def aim(self, kind: Kind, view: ClusterView) -> Fault | None:
        """The fault on somebody who is there; None when nobody is."""
        choice = self._draw.random()
        hold_s, ends_in_kill = self._draw.uniform(2.0, 5.0), self._draw.random() < 0.5
        if kind is Kind.REDEPLOY:
            return Fault(kind, None)
        targets = {
            Kind.KILL_SHARD: view.shards,
            Kind.KILL_GATEWAY: view.gateways,
            Kind.KILL_PROXY: view.proxies,
            Kind.KILL_CONTROLLER: view.controllers,
            Kind.KILL_RANK: view.ranks,
            Kind.FREEZE_RANK: view.ranks,
        }.get(kind, view.replicas)
        if not targets:
            return None
        target = sorted(targets, key=lambda process: process.name)[int(choice * len(targets))]
        if kind in FREEZES:
            return Fault(kind, target, hold_s=hold_s, ends_in_kill=ends_in_kill)
        return Fault(kind, target)
