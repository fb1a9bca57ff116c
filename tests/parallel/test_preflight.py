"""Of ranks that are alike nobody is odd; the one that differs is named, with its value and what to do."""

from typing import Any

import msgspec
import pytest

from parallel.layout import RankLayout
from parallel.preflight_facts import MUST_AGREE, Oddity, RankFacts, Transport, choose_transports, compare_facts
from parallel.preflight_probe import neighbours, opponents
from parallel.preflight_speeds import LinkSpeed, RankSpeeds, compare_speeds

GIB = 1 << 30
FACTS = RankFacts(
    host="",
    memory_domain="one",
    manta="0.1.0 (abcd)",
    python="3.11.7",
    torch="2.13.0",
    transformers="5.23.0",
    nccl="",
    device="cpu",
    device_name="Xeon",
    device_id="",
    kernels="compiled",
    dtype="bfloat16",
    weights="ad2f",
    num_threads=2,
    free_bytes=20 * GIB,
    host_free_bytes=20 * GIB,
)
GRIDS = [RankLayout(2, 1), RankLayout(1, 2), RankLayout(4, 1), RankLayout(2, 2), RankLayout(2, 4)]


def alike(count: int, **changes: Any) -> list[RankFacts]:
    return [msgspec.structs.replace(FACTS, host=f"node{rank}", **changes) for rank in range(count)]


def but(facts: list[RankFacts], rank: int, **changes: Any) -> list[RankFacts]:
    return [msgspec.structs.replace(fact, **changes) if i == rank else fact for i, fact in enumerate(facts)]


def compare(facts: list[RankFacts], **expected: str) -> list[Oddity]:
    return compare_facts(facts, [0.0] * len(facts), expected)


def test_ranks_that_are_alike() -> None:
    assert compare(alike(4)) == []
    assert compare(alike(1)) == []


@pytest.mark.parametrize("field", MUST_AGREE)
@pytest.mark.parametrize("count", [3, 4])
def test_what_gives_wrong_results_is_refused_with_rank_host_value_and_remedy(field: str, count: int) -> None:
    (oddity,) = compare(but(alike(count), 2, **{field: "other"}))
    assert oddity.refuses and (oddity.rank, oddity.host) == (2, "node2")
    assert "other" in oddity.what and str(getattr(FACTS, field) or "none") in oddity.what
    assert oddity.remedy == MUST_AGREE[field]
    assert str(oddity) == f"rank 2 on node2 {oddity.what}: {oddity.remedy}"


def test_of_two_the_one_that_differs_from_the_driver_is_odd() -> None:
    facts = but(alike(2), 0, torch="2.12.0")
    assert [oddity.rank for oddity in compare(facts, torch="2.13.0")] == [0]
    assert [oddity.rank for oddity in compare(alike(2), torch="2.14.0")] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"python": "3.12.1"}, "python 3.12.1"),
        ({"device_name": "Epyc"}, "device name Epyc"),
        ({"free_bytes": 4 * GIB}, "4.0 GiB free, the others 20.0 GiB"),
    ],
)
def test_what_only_costs_is_a_warning(changes: dict[str, Any], says: str) -> None:
    (oddity,) = compare(but(alike(3), 1, **changes))
    assert oddity.rank == 1 and not oddity.refuses and says in oddity.what


def test_a_clock_that_is_off_and_a_gpu_of_two_ranks() -> None:
    assert [oddity.rank for oddity in compare_facts(alike(3), [0.2, -0.3, -1.5], {})] == [2]
    gpus = [msgspec.structs.replace(fact, device="cuda", device_id="GPU-1") for fact in alike(2)]
    (oddity,) = compare(gpus)
    assert oddity.rank == 1 and "rank 0" in oddity.what


def test_the_fastest_transport_that_works_is_chosen() -> None:
    grid = RankLayout(2, 2)
    memory, gloo = Transport.MEMORY, Transport.GLOO
    assert choose_transports(alike(4), grid).tensor == (memory, memory)
    assert choose_transports(alike(4), grid).pipe is gloo
    assert choose_transports(but(alike(4), 3, memory_domain="two"), grid).tensor == (memory, gloo)
    assert choose_transports(alike(4, kernels="none"), grid).tensor == (gloo, gloo)
    gpus = [msgspec.structs.replace(fact, device="cuda", device_id=f"GPU-{rank}") for rank, fact in enumerate(alike(4))]
    assert choose_transports(gpus, grid).tensor == (Transport.NCCL,) * 2
    assert choose_transports(gpus, grid).pipe is Transport.NCCL
    assert choose_transports(but(gpus, 3, device_id="GPU-0"), grid).pipe is Transport.STAGED


def measured(
    layout: RankLayout, slow: int | None = None, factor: float = 1.0, small_s: float = 1e-4
) -> list[RankSpeeds]:
    """All links and sums alike, but those of one rank so many times slower."""
    speeds = []
    for rank in range(layout.world_size):
        mates = layout.stage_ranks(layout.position(rank).pp_rank)
        peers = [*mates, layout.next_rank(rank)]
        links = []
        for peer in peers:
            if peer is not None and peer > rank:
                times = factor if slow in (rank, peer) else 1.0
                links.append(LinkSpeed(peer, small_s * times, 1e9 / times))
        speeds.append(RankSpeeds(work_s=0.01, sum_small_s=small_s, sum_large_s=10 * small_s, links=links))
    return speeds


@pytest.mark.parametrize("layout", GRIDS, ids=str)
def test_a_rank_that_is_hard_to_reach_is_named(layout: RankLayout) -> None:
    facts = alike(layout.world_size)
    assert compare_speeds(measured(layout), facts, layout) == []
    odd = layout.world_size - 1
    oddities = compare_speeds(measured(layout, odd, 100.0), facts, layout)
    assert oddities and {oddity.rank for oddity in oddities} == {odd}
    assert not any(oddity.refuses for oddity in oddities)


def test_differences_that_do_not_matter_are_no_oddity() -> None:
    layout = RankLayout(4, 1)
    assert compare_speeds(measured(layout, 1, 40.0, small_s=1e-5)[:], alike(4), layout)  # 25 MB/s
    assert not compare_speeds(measured(layout, 1, 3.0), alike(4), layout)


def test_one_slow_link_names_both_of_its_ends() -> None:
    layout = RankLayout(4, 1)
    speeds = measured(layout)
    links = [*speeds[1].links[:-1], LinkSpeed(3, 20e-3, 1e9)]
    speeds[1] = msgspec.structs.replace(speeds[1], links=links)
    (oddity,) = compare_speeds(speeds, alike(4), layout)
    assert oddity.rank == 3 and "to rank 1 on node1" in oddity.what


def test_a_slow_device_is_named_by_its_speed_for_each_thread() -> None:
    layout = RankLayout(1, 3)
    speeds = measured(layout)
    speeds[2] = msgspec.structs.replace(speeds[2], work_s=0.02)
    (oddity,) = compare_speeds(speeds, alike(3), layout)
    assert oddity.rank == 2 and "2.0 times slower" in oddity.what
    assert compare_speeds(speeds, but(alike(3), 2, num_threads=1), layout) == []


def test_a_stage_that_sums_slowly_is_named() -> None:
    layout = RankLayout(2, 3)
    speeds = measured(layout)
    speeds[3] = msgspec.structs.replace(speeds[3], sum_small_s=2e-3)
    (oddity,) = compare_speeds(speeds, alike(6), layout)
    assert oddity.rank == 2 and "ranks 2 to 3" in oddity.what


@pytest.mark.parametrize("size", range(1, 10))
def test_pairs_meet_without_waiting_for_each_other_in_a_circle(size: int) -> None:
    assert meetings([list(opponents(index, size)) for index in range(size)]) == {
        (low, high) for high in range(size) for low in range(high)
    }
    assert meetings([list(neighbours(index, size)) for index in range(size)]) == {
        (index, index + 1) for index in range(size - 1)
    }


def meetings(peers: list[list[int]]) -> set[tuple[int, int]]:
    """Who has met whom, when each waits for the next of its own list; fails where they wait for ever."""
    met: set[tuple[int, int]] = set()
    while any(peers):
        ready = {(i, others[0]) for i, others in enumerate(peers) if others and peers[others[0]][:1] == [i]}
        assert ready, peers
        for index, peer in ready:
            met.add((min(index, peer), max(index, peer)))
            peers[index].pop(0)
    return met
