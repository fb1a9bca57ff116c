"""Pictures are drawn, and without matplotlib the remedy is named."""

import sys
from pathlib import Path

import pytest

from deployments.simulation.plots import plot
from engine.errors import ConfigError
from tests.deployments.simulation.simulated_cluster import SHORT, simulated


def test_a_picture_of_two_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    worlds = {f"seed {seed}": simulated(SHORT.arrivals(seed), num_requests=60) for seed in (1, 2)}
    plot(worlds, tmp_path / "runs.png")
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"manta-serve\[simulate\]"):
        plot({}, tmp_path / "none.png")
