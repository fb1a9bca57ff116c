"""What the console says of the fleet is what its processes have counted between two moments."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.console.fleet_view import Between, Numbers, changes, fleet_view, within_buckets
from cluster.metrics import declared
from cluster.metrics.declared import Source
from cluster.metrics.instruments import Instruments
from cluster.metrics.snapshot import Families, Snapshot
from tests.cluster.router_world import replica_info

KNOWN = {"r1": replica_info("r1")}
MODEL = KNOWN["r1"].model


def gateway(name: str, tokens: int, first_tokens: tuple[float, ...] = ()) -> Snapshot:
    instruments = Instruments()
    instruments.number(declared.LIVE_SHARDS).value = 1
    instruments.number(declared.OUTPUT_TOKENS, MODEL, "acme").value = tokens
    for seconds in first_tokens:
        instruments.histogram(declared.FIRST_TOKEN_TIME, MODEL).observe(seconds)
    return Snapshot(Source.GATEWAY, name, instruments.families())


def replica(name: str, steps: int, batch: int) -> Snapshot:
    families = Families()
    families.add(declared.REPORT_AGE, 0.04, MODEL)
    families.add(declared.STEPS, steps, MODEL)
    families.add(declared.BATCH, batch, MODEL)
    return Snapshot(Source.REPLICA, name, families.samples)


def shard(migrations: int) -> Snapshot:
    families = Families()
    families.add(declared.GATEWAYS, 2)
    families.add(declared.QUEUED_REQUESTS, 5, MODEL)
    families.add(declared.MIGRATIONS, migrations, MODEL)
    return Snapshot(Source.SHARD, "0", families.samples)


def test_rates_and_percentiles_are_of_the_time_between() -> None:
    before = Numbers([gateway("a", 100, (9.0, 9.0)), gateway("b", 50), replica("r1", 10, 1), shard(3)], 100.0)
    now = [gateway("a", 300, (9.0, 9.0, 0.02)), gateway("b", 150, (0.04,)), replica("r1", 60, 4), shard(3)]
    view = fleet_view(Between(before, Numbers(now, 110.0)), KNOWN, ["x"])
    [model] = view.models
    assert (model.model, model.tokens_per_s, model.queued_requests) == (MODEL, 30.0, 5)
    assert model.first_token_p50 is not None
    assert model.first_token_p99 is not None
    assert 0.01 <= model.first_token_p50 <= 0.025 < model.first_token_p99 <= 0.05
    assert (model.inter_token_p50, model.inter_token_p99) == (None, None)
    [one] = view.replicas
    assert (one.replica, one.steps_per_s, one.batch, one.ranks) == ("r1", 5.0, 4, KNOWN["r1"].pids)
    assert ([shard.shard for shard in view.shards], view.gateways, view.happened) == (["0"], ["a", "b"], ["x"])


def test_the_dead_are_not_shown_and_a_new_process_counts_from_nothing() -> None:
    before = Numbers([gateway("a", 1000)], 0.0)
    now = Numbers([gateway("a", 20), replica("r1", 60, 4).of_the_dead()], 10.0)
    view = fleet_view(Between(before, now), KNOWN, [])
    assert view.models[0].tokens_per_s == 2.0
    assert view.replicas == []


def test_what_happened_is_told_once_by_what_changed() -> None:
    between = Between(Numbers([shard(3)], 0.0), Numbers([shard(5)], 1.0))
    assert changes(between, KNOWN, {"r2": replica_info("r2")}) == [
        f"replica r2 of {MODEL} has come",
        f"replica r1 of {MODEL} has gone",
        f"{MODEL}: 2 streams went on at another replica",
    ]
    assert changes(Between(Numbers([shard(3)], 0.0), Numbers([shard(3)], 1.0)), KNOWN, KNOWN) == []


@pytest.mark.parametrize(("share", "expected"), [(0.5, 1.0), (0.25, 0.5), (0.75, 1.5), (1.0, 2.0)])
def test_percentiles_lie_evenly_in_their_buckets(share: float, expected: float) -> None:
    assert within_buckets((1.0, 2.0), [10.0, 10.0, 0.0], share) == pytest.approx(expected)


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_percentiles_are_in_order_and_within_the_bounds(counts: list[int], a: float, b: float) -> None:
    bounds = (0.1, 1.0, 10.0)
    low, high = (within_buckets(bounds, [float(count) for count in counts], share) for share in sorted((a, b)))
    if not any(counts):
        assert low is high is None
        return
    assert low is not None
    assert high is not None
    assert 0.0 <= low <= high <= bounds[-1]
