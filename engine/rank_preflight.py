"""Before a replica of many ranks loads: its ranks say what they are, meet, and measure each other.

What would give wrong results is refused with `RankMisfit`; what is only slow becomes a warning. Judging is
`parallel.preflight_facts` and `parallel.preflight_speeds`; this is the driver's side of asking.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

from engine.errors import RankMisfit
from engine.fit_check import Room
from engine.rank_facts import code_versions
from engine.rank_frames import Here, Meet, Met, Ping, Pong
from engine.rank_group import RankGroup
from parallel.layout import RankLayout
from parallel.preflight import Preflight, Reach
from parallel.preflight_facts import Oddity, RankFacts, choose_transports, compare_facts
from parallel.preflight_speeds import compare_speeds

log = logging.getLogger(__name__)

_PINGS = 5
_IMPORT_PATIENCE_S = 120.0  #: until a rank has torch and its device
_MEET_PATIENCE_S = 60.0  #: NCCL takes seconds to connect; a collective has its own, shorter limit


def hear_facts(group: RankGroup, layout: RankLayout) -> list[RankFacts]:
    """What the ranks are, as soon as they can say it."""
    return [here.facts for here in hear_all(group, layout, Here, _IMPORT_PATIENCE_S)]


def rooms_of(facts: Sequence[RankFacts]) -> list[Room]:
    """The memories that the ranks compute in: a host's, or a GPU's each."""
    rooms = [room for room in hosts_of(facts) if not facts[room.ranks[0]].device_id]
    for device_id in dict.fromkeys(fact.device_id for fact in facts if fact.device_id):
        ranks = [rank for rank, fact in enumerate(facts) if fact.device_id == device_id]
        first = facts[ranks[0]]
        where = f"{first.device_name} of rank {ranks[0]} on {first.host}"
        rooms.append(Room(where, min(facts[rank].free_bytes for rank in ranks), ranks, is_gpu=True))
    return rooms


def hosts_of(facts: Sequence[RankFacts]) -> list[Room]:
    """The memories of their hosts, which may have one name."""
    rooms = []
    for domain in dict.fromkeys(fact.memory_domain for fact in facts):
        ranks = [rank for rank, fact in enumerate(facts) if fact.memory_domain == domain]
        free_bytes = min(facts[rank].host_free_bytes for rank in ranks)
        rooms.append(Room(f"host {facts[ranks[0]].host}", free_bytes, ranks))
    return rooms


def preflight(
    group: RankGroup,
    layout: RankLayout,
    facts: list[RankFacts],
    weights_revision: str,
    *,
    is_rehearsal: bool,
) -> Preflight:
    """Let the ranks meet, after everything that can be known before. Raises `RankMisfit` or `RankLost`.

    `weights_revision`: that of the driver's checkpoint. `is_rehearsal`: nothing will be loaded, so it may take memory.
    """
    started = time.perf_counter()
    reaches = _reach(group, layout)
    expected = {**code_versions(), "weights": weights_revision}
    oddities = compare_facts(facts, [reach.clock_offset_s for reach in reaches], expected)
    _refuse(oddities)
    transports = choose_transports(facts, layout)
    group.tell(Meet(transports.tensor, transports.pipe, is_rehearsal))
    speeds = [met.speeds for met in hear_all(group, layout, Met, _MEET_PATIENCE_S)]
    oddities += compare_speeds(speeds, facts, layout)
    for oddity in oddities:
        log.warning("preflight: %s", oddity)
    found = Preflight(layout, facts, reaches, transports, speeds, oddities, time.perf_counter() - started)
    log.info("preflight: %s", found)
    return found


def hear_all(group: RankGroup, layout: RankLayout, kind: type[Any], patience_s: float) -> list[Any]:
    """The next message of this kind of each rank, in order."""
    heard: dict[int, Any] = {}
    for peer, frame in group.hear(patience_s):
        if isinstance(frame, kind):
            heard[peer.rank] = frame
        if len(heard) == layout.world_size:
            break
    return [heard[rank] for rank in range(layout.world_size)]


def _refuse(oddities: Sequence[Oddity]) -> None:
    refusing = [oddity for oddity in oddities if oddity.refuses]
    for oddity in refusing[1:]:
        log.error("preflight: %s", oddity)
    for oddity in refusing[:1]:
        raise RankMisfit(oddity.rank, oddity.host, oddity.what, oddity.remedy)


def _reach(group: RankGroup, layout: RankLayout) -> list[Reach]:
    """By the shortest of some round trips, half of which is the way there."""
    best: dict[int, Reach] = {}
    for _ in range(_PINGS):
        sent, clock = time.perf_counter(), time.time()
        group.tell(Ping())
        heard = 0
        for peer, frame in group.hear(_MEET_PATIENCE_S):
            if isinstance(frame, Pong):
                round_trip = time.perf_counter() - sent
                if peer.rank not in best or round_trip < best[peer.rank].round_trip_s:
                    best[peer.rank] = Reach(round_trip, frame.clock_s - clock - round_trip / 2)
                heard += 1
            if heard == layout.world_size:
                break
    return [best[rank] for rank in range(layout.world_size)]
