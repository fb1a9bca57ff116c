"""`manta simulate` from its arguments to its output."""

import json
from pathlib import Path

import pytest

from deployments.cli import main
from deployments.simulation.workload import read_trace

SMALL = ["simulate", "--replicas", "2", "--requests", "60", "--cost-model", "cpu-60m", "--output-tokens", "2:8"]


def test_policies_are_compared_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--policy", "least_loaded,round_robin", "--tenant", "a=1", "--tenant", "b=3:2", "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["policy"], second["policy"]) == ("least_loaded", "round_robin")
    assert first["num_done"] == second["num_done"] == 60
    assert first["tenants"]["b"]["num_requests"] > first["tenants"]["a"]["num_requests"]


def test_a_trace_that_was_written_gives_the_same_result(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = str(tmp_path / "trace.jsonl")
    assert main([*SMALL, "--write-trace", trace]) == 0
    results = []
    for load in ([], ["--trace", trace]):
        assert main([*SMALL, *load, "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1]


def test_the_table_says_whether_the_engine_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    shown = capsys.readouterr().out
    assert "2 replicas of cpu-60m (measured:" in shown and "TTFT p50" in shown


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--cost-model", "nowhere.json"], "give a file, or one of"),
        (["--fault", "kill:9@1"], "there are 2 replicas"),
        (["--policy", "fastest"], "router.policy"),
        (["--tenant", "a=b"], "NAME=SHARE"),
    ],
)
def test_wrong_arguments_are_named(capsys: pytest.CaptureFixture[str], words: list[str], why: str) -> None:
    assert main([*SMALL, *words]) == 2
    assert why in capsys.readouterr().err


def test_a_benchmark_writes_its_load_as_a_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "bench.jsonl"
    load = ["bench", "--requests", "10", "--input-tokens", "4:8", "--output-tokens", "3", "--prefix-tokens", "16"]
    assert main([*load, "--rate", "5", "--write-trace", str(trace)]) == 0
    arrivals = list(read_trace(trace))
    assert len(arrivals) == 10 and arrivals[0].at == 0.0 < arrivals[-1].at
    assert {(arrival.group, arrival.prefix_tokens, arrival.output_tokens) for arrival in arrivals} == {(1, 16, 3)}
    assert all(20 <= arrival.prompt_tokens <= 24 for arrival in arrivals)
    assert main([*load, "--write-trace", str(trace)]) == 2
    assert "--rate" in capsys.readouterr().err
