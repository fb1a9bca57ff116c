"""Figures computed by hand."""

import pytest

from deployments.simulation.faults import Kill, Slow, parse_fault
from deployments.simulation.results import max_min_shares
from engine.errors import ConfigError


def test_max_min_shares_go_by_weight_and_never_over_what_was_asked() -> None:
    asked = {"small": 10.0, "large": 100.0, "heavy": 100.0}
    weights = {"small": 1.0, "large": 1.0, "heavy": 2.0}
    assert max_min_shares(asked, weights, 100.0) == pytest.approx({"small": 10.0, "large": 30.0, "heavy": 60.0})
    assert max_min_shares(asked, weights, 300.0) == pytest.approx(asked)
    assert max_min_shares({"idle": 0.0}, {"idle": 1.0}, 5.0) == {"idle": 0.0}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("kill:3@10", Kill(3, 10.0)),
        ("kill:3@10.5+20", Kill(3, 10.5, 20.0)),
        ("slow:0x2", Slow(0, 2.0)),
        ("slow:0x2.5@5+30", Slow(0, 2.5, 5.0, 30.0)),
    ],
)
def test_faults_are_read(text: str, fault: object) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize("text", ["kill:x@1", "slow:1", "slow:1x0", "stop:1@2"])
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="give kill:REPLICA@T"):
        parse_fault(text)
