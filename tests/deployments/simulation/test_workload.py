"""Workloads: laws of chance that repeat themselves, prompts that share what they should, traces as files."""

from itertools import islice, pairwise
from pathlib import Path

import msgspec
import pytest

from deployments.simulation.workload import Arrival, Lengths, Workload, merge, prompt_of, read_trace, write_trace
from engine.errors import ConfigError
from tests.deployments.simulation.simulated_cluster import SHORT


def variant(**changes: object) -> Workload:
    return msgspec.structs.replace(SHORT, **changes)


def common_tokens(first: list[int], second: list[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


def test_the_same_seed_gives_the_same_arrivals() -> None:
    workload = variant(num_groups=3, burst=4.0, tenants={"a": 1.0, "b": 2.0})
    first, second, other = (list(islice(workload.arrivals(seed), 200)) for seed in (7, 7, 8))
    assert first == second != other


@pytest.mark.parametrize("burst", [1.0, 5.0, 10.0])
def test_the_rate_is_kept_with_and_without_bursts(burst: float) -> None:
    arrivals = list(islice(variant(burst=burst).arrivals(1), 8_000))
    assert len(arrivals) / arrivals[-1].at == pytest.approx(40.0, rel=0.1)
    in_bursts = sum(arrival.at % 10.0 < 1.0 for arrival in arrivals)
    assert in_bursts / len(arrivals) == pytest.approx(0.1 * burst, abs=0.05)


def test_lengths_stay_in_their_range_and_have_the_mean_they_say() -> None:
    lengths = Lengths(16, 512)
    drawn = [arrival.prompt_tokens for arrival in islice(variant(prompt=lengths).arrivals(3), 5_000)]
    assert min(drawn) >= 16 and max(drawn) <= 512
    assert sum(drawn) / len(drawn) == pytest.approx(lengths.mean, rel=0.05)
    assert Lengths(9, 9).mean == 9


def test_a_group_shares_its_prefix_and_nothing_else() -> None:
    first, second = (Arrival(0.0, 50, 4, group=1, prefix_tokens=30) for _ in range(2))
    stranger = msgspec.structs.replace(first, group=2)
    assert len(prompt_of(first, 0)) == 50
    assert common_tokens(prompt_of(first, 0), prompt_of(second, 1)) == 30
    assert common_tokens(prompt_of(first, 0), prompt_of(stranger, 2)) == 0
    assert common_tokens(prompt_of(Arrival(0.0, 50, 4), 3), prompt_of(Arrival(0.0, 50, 4), 4)) == 0


def test_a_turn_begins_with_all_before_it() -> None:
    arrivals = list(islice(variant(turns=3, think_s=0.1).arrivals(5), 300))
    assert arrivals == sorted(arrivals, key=lambda arrival: arrival.at)
    sessions: dict[str, list[Arrival]] = {}
    for arrival in arrivals:
        sessions.setdefault(arrival.session, []).append(arrival)
    assert max(map(len, sessions.values())) == 3
    for turns in sessions.values():
        for last, following in pairwise(turns):
            assert following.prompt_tokens > last.prompt_tokens + last.output_tokens
            assert common_tokens(prompt_of(last, 1), prompt_of(following, 2)) == last.prompt_tokens


def test_merged_workloads_are_in_order() -> None:
    arrivals = list(islice(merge([SHORT, variant(tenants={"flood": 1.0}, start_s=1.0)], 4), 200))
    assert arrivals == sorted(arrivals, key=lambda arrival: arrival.at)
    assert {arrival.tenant for arrival in arrivals} == {"default", "flood"}


def test_a_trace_comes_back_as_written(tmp_path: Path) -> None:
    arrivals = list(islice(variant(num_groups=2).arrivals(1), 50))
    write_trace(tmp_path / "trace.jsonl", arrivals)
    assert list(read_trace(tmp_path / "trace.jsonl")) == arrivals


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"at": 1.0}', "not an arrival"),
        ('{"at": 0.1, "prompt_tokens": 4, "output_tokens": 4}', "sort the lines"),
        ('{"at": 2.0, "prompt_tokens": 4, "output_tokens": 4, "tennant": "a"}', "tennant"),
    ],
)
def test_what_is_no_trace_is_refused_by_line(tmp_path: Path, line: str, why: str) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"at": 1.0, "prompt_tokens": 4, "output_tokens": 4}\n' + line + "\n")
    with pytest.raises(ConfigError, match=why) as raised:
        list(read_trace(trace))
    assert str(raised.value.value).endswith("trace.jsonl:2")


def test_a_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_trace(tmp_path / "none"))
