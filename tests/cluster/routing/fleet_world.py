"""A fleet of replicas as plain numbers, for policies computed by hand: blocks of 4 tokens, 64 of them, 4 slots."""

from cluster.config import RouterConfig
from cluster.frames import Enqueue, Report
from cluster.router.waiting import Waiting
from cluster.routing.fleet import Fleet
from cluster.routing.replica_state import ReplicaState
from engine.request import EngineLoad
from tests.cluster.router_world import replica_info


def fleet_of(*names: str, **settings: float) -> Fleet:
    """Replicas that have just reported to be empty."""
    fleet = Fleet(RouterConfig(**settings))  # type: ignore[arg-type]
    for name in names:
        fleet.add(replica_info(name), 0.0)
        report(fleet, name)
    return fleet


def report(fleet: Fleet, name: str, now: float = 0.0, running: int = 0, blocks: int = 64, queued: int = 0) -> None:
    load = EngineLoad(1, running, 0, 4 - running, blocks, queued)
    fleet.report(fleet.replicas[name], Report(load, []), 0.5, now)


def waiting(
    name: str = "q", prompt: int = 8, new: int = 1, *, hashes: str = "", session: str = "", **more: object
) -> Waiting:
    """A request; each letter of `hashes` is a block hash."""
    blocks = [letter.encode() for letter in hashes]
    asked = Enqueue(
        name, 0, "m", "t", 0, 60.0, prompt, 16, block_hashes=blocks, session=session, **more  # type: ignore[arg-type]
    )  # fmt: skip
    return Waiting(asked, "g", 0.0, 60.0, prompt + 2 * new, num_new_tokens=new, avoid_until=1.0)


def name_of(replica: ReplicaState | None) -> str:
    assert replica is not None
    return replica.replica_id
