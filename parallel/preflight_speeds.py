"""How fast the ranks of one replica compute and reach each other, compared: the slow one is named. Pure code."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from parallel.layout import RankLayout
from parallel.preflight_facts import Oddity, RankFacts, median

#: A rank is slow when its device takes so many times the median of the others for the same work ...
SLOW_WORK = 1.75
#: ... and a link or a sum when it takes so many times the median of the others of its kind, and longer than this: a
#: small message, a MiB.
SLOW_RATIO = 5.0
NOTABLE_S = 0.5e-3
NOTABLE_LARGE_S = 4e-3
#: Slow whatever the others do: a step of 32 layers sums 64 times, and passes on some MB of a prompt.
HIGH_LATENCY_S = 5e-3
LOW_BYTES_PER_S = 50e6


class LinkSpeed(msgspec.Struct, frozen=True):
    """Between two ranks: one way of a small message, and of a large one."""

    peer: int
    latency_s: float
    bytes_per_s: float


class RankSpeeds(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank has measured. Of two ranks the lower one reports their link."""

    work_s: float  #: for the same arithmetic at all ranks
    sum_small_s: float = 0.0  #: an all-reduce of its stage; 0 where a stage is one rank
    sum_large_s: float = 0.0
    links: list[LinkSpeed] = []  #: to ranks of its stage, and to the next stage


@dataclass(frozen=True)
class _Link:
    ranks: tuple[int, int]
    latency_s: float
    large_s: float  #: seconds for a MiB
    crosses_stages: bool


def compare_speeds(speeds: Sequence[RankSpeeds], facts: Sequence[RankFacts], layout: RankLayout) -> list[Oddity]:
    """All that is slow."""
    links = [
        _Link(
            (rank, link.peer),
            link.latency_s,
            2**20 / link.bytes_per_s,
            _stage(rank, layout) != _stage(link.peer, layout),
        )
        for rank, speed in enumerate(speeds)
        for link in speed.links
    ]
    return [
        *_slow_work(speeds, facts),
        *_slow_sums(speeds, facts, layout),
        *_slow_links([link for link in links if link.crosses_stages], facts, "the stage before or behind it"),
        *_slow_links([link for link in links if not link.crosses_stages], facts, "its stage"),
    ]


def _stage(rank: int, layout: RankLayout) -> int:
    return layout.position(rank).pp_rank


def _slow_work(speeds: Sequence[RankSpeeds], facts: Sequence[RankFacts]) -> list[Oddity]:
    """On CPUs by thread: ranks may own one core more or less."""
    work = [
        speed.work_s * (fact.num_threads if fact.device == "cpu" else 1)
        for speed, fact in zip(speeds, facts, strict=True)
    ]
    oddities = []
    for rank, took in enumerate(work):
        others = [*work[:rank], *work[rank + 1 :]]
        if others and took > SLOW_WORK * (usual := median(others)):
            what = f"computes {took / usual:.1f} times slower than the others"
            remedy = "the slowest rank sets the pace: look for other programs, heat or a power limit there"
            oddities.append(Oddity(rank, facts[rank].host, what, remedy))
    return oddities


def _slow_sums(speeds: Sequence[RankSpeeds], facts: Sequence[RankFacts], layout: RankLayout) -> list[Oddity]:
    stages = [layout.stage_ranks(stage) for stage in range(layout.pipeline_parallel)]
    times = [max(speeds[rank].sum_small_s for rank in ranks) for ranks in stages]
    oddities = []
    for index, (took, ranks) in enumerate(zip(times, stages, strict=True)):
        if _is_slow(took, [*times[:index], *times[index + 1 :]], NOTABLE_S, HIGH_LATENCY_S):
            what = f"and its stage (ranks {ranks[0]} to {ranks[-1]}) take {took * 1e3:.1f} ms for a small sum"
            remedy = "each layer sums twice: keep a stage's ranks on one host, each on cores or a GPU of its own"
            oddities.append(Oddity(ranks[0], facts[ranks[0]].host, what, remedy))
    return oddities


def _slow_links(links: Sequence[_Link], facts: Sequence[RankFacts], where: str) -> list[Oddity]:
    slow = []
    for link in links:
        others = [other for other in links if other is not link]
        late = _is_slow(link.latency_s, [other.latency_s for other in others], NOTABLE_S, HIGH_LATENCY_S)
        large = [other.large_s for other in others]
        if late or _is_slow(link.large_s, large, NOTABLE_LARGE_S, 2**20 / LOW_BYTES_PER_S):
            slow.append(link)
    oddities = []
    while slow:
        (rank, count), *rest = Counter(rank for link in slow for rank in link.ranks).most_common()
        is_the_one = count > 1 and (not rest or rest[0][1] < count)
        worst = max((link for link in slow if rank in link.ranks), key=lambda link: link.latency_s + link.large_s)
        if not is_the_one:
            rank = max(worst.ranks)
        peer = next(other for other in worst.ranks if other != rank)
        figures = f"{worst.latency_s * 1e6:,.0f} us, {2**20 / worst.large_s / 1e6:,.0f} MB/s"
        what = f"is slow to reach from {where} ({figures} to rank {peer} on {facts[peer].host})"
        oddities.append(Oddity(rank, facts[rank].host, what, "look at the network, and at what else runs there"))
        slow = [link for link in slow if rank not in link.ranks] if is_the_one else [s for s in slow if s is not worst]
    return oddities


def _is_slow(took: float, others: Sequence[float], notable: float, limit: float) -> bool:
    return took > limit or (bool(others) and took > max(notable, SLOW_RATIO * median(others)))
