"""Every policy by hand: who is chosen, and who must not be."""

from collections import Counter

import pytest

from cluster.config import Policy, RouterConfig
from cluster.routing.policy import RoutingPolicy, policy_of
from tests.cluster.routing.fleet_world import fleet_of, name_of, report, waiting


def policy(kind: Policy, seed: int = 0, cap: int = 8192) -> RoutingPolicy:
    return policy_of(RouterConfig(policy=kind, affinity_cap_tokens=cap), seed)


def test_prefix_affinity_goes_where_the_prefix_is() -> None:
    fleet, chosen = fleet_of("a", "b"), policy(Policy.PREFIX_AFFINITY)
    report(fleet, "a", queued=10)
    fleet.grant(waiting("first", 12, hashes="xyz"), fleet.replicas["a"], 0.0)
    assert name_of(chosen.choose(waiting(prompt=40), fleet, 0.0)) == "b"
    # "a" has 10 + 12 + 128 tokens of work: three cached blocks of 4 are not worth it; on an equal load they are
    assert name_of(chosen.choose(waiting(prompt=40, hashes="xyz"), fleet, 0.0)) == "b"
    report(fleet, "b", queued=140)
    assert name_of(chosen.choose(waiting(prompt=40, hashes="xyz"), fleet, 0.0)) == "a"
    assert name_of(chosen.choose(waiting(prompt=40, hashes="xq"), fleet, 0.0)) == "b"


def test_prefix_affinity_is_capped() -> None:
    fleet = fleet_of("a", "b")
    fleet.grant(waiting("first", 12, hashes="xyz"), fleet.replicas["a"], 0.0)
    report(fleet, "b", queued=134)
    asked = waiting(prompt=40, hashes="xyz")
    assert name_of(policy(Policy.PREFIX_AFFINITY, cap=8192).choose(asked, fleet, 0.0)) == "a"  # 140 - 12
    assert name_of(policy(Policy.PREFIX_AFFINITY, cap=4).choose(asked, fleet, 0.0)) == "b"  # 140 - 4


def test_least_loaded_by_work_in_tokens() -> None:
    fleet = fleet_of("a", "b", "c")
    for name, queued in (("a", 9), ("b", 3), ("c", 5)):
        report(fleet, name, queued=queued)
    assert name_of(policy(Policy.LEAST_LOADED).choose(waiting(), fleet, 0.0)) == "b"


def test_a_stale_view_is_spread_by_two_random_choices() -> None:
    names = [f"r{number}" for number in range(16)]
    fleet, chosen = fleet_of(*names), policy(Policy.LEAST_LOADED)
    for name in names[1:]:
        report(fleet, name, queued=5)
    assert {name_of(chosen.choose(waiting(), fleet, 0.2)) for _ in range(50)} == {"r0"}
    spread = Counter(name_of(chosen.choose(waiting(), fleet, 0.5)) for _ in range(200))
    assert len(spread) > 8 and spread["r0"] > 200 / 16


def test_power_of_two_is_random_and_repeats_with_its_seed() -> None:
    names = [f"r{number}" for number in range(8)]
    fleet = fleet_of(*names)
    runs = []
    for seed in (1, 1, 2):
        chosen = policy(Policy.POWER_OF_TWO, seed)
        runs.append([name_of(chosen.choose(waiting(), fleet, 0.0)) for _ in range(40)])
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) > 4


def test_round_robin_takes_turns_and_leaves_out_who_has_no_credit() -> None:
    fleet, chosen = fleet_of("a", "b", "c"), policy(Policy.ROUND_ROBIN)
    taken = []
    for number in range(7):
        asked = waiting(f"q{number}")
        replica = chosen.choose(asked, fleet, 0.0)
        assert replica is not None
        fleet.grant(asked, replica, 0.0)
        taken.append(replica.replica_id)
        if number == 3:
            report(fleet, "b", running=4)
    assert taken == ["a", "b", "c", "a", "c", "a", "c"]


def test_a_session_stays_on_its_replica_and_moves_when_that_has_far_more() -> None:
    fleet, chosen = fleet_of(*"abcdefgh"), policy(Policy.SESSION_AFFINITY)
    home = {s: name_of(chosen.choose(waiting(session=s), fleet, 0.0)) for s in "stuvwxyz"}
    assert home == {s: name_of(chosen.choose(waiting(session=s, hashes="q"), fleet, 0.0)) for s in "stuvwxyz"}
    assert len(set(home.values())) > 2
    prefix = name_of(chosen.choose(waiting(hashes="pq"), fleet, 0.0))
    assert prefix == name_of(chosen.choose(waiting(hashes="pr"), fleet, 0.0))
    report(fleet, home["s"], running=4)
    assert name_of(chosen.choose(waiting(session="s"), fleet, 0.0)) != home["s"]


def test_sessions_of_the_others_stay_when_a_replica_goes() -> None:
    fleet, chosen = fleet_of(*"abcdefgh"), policy(Policy.SESSION_AFFINITY)
    sessions = [f"s{number}" for number in range(64)]
    before = {s: name_of(chosen.choose(waiting(session=s), fleet, 0.0)) for s in sessions}
    fleet.remove("c")
    after = {s: name_of(chosen.choose(waiting(session=s), fleet, 0.0)) for s in sessions}
    assert all(after[s] == before[s] for s in sessions if before[s] != "c")
    assert "c" not in after.values()


@pytest.mark.parametrize("kind", Policy)
def test_no_policy_chooses_who_is_not_able(kind: Policy) -> None:
    fleet, chosen = fleet_of(*"abcdef"), policy(kind)
    report(fleet, "a", running=4)  # no slot
    report(fleet, "b", running=1, blocks=1)  # no blocks
    fleet.replicas["c"].is_draining = True
    fleet.refresh(fleet.replicas["c"])
    asked = waiting(prompt=8, hashes="x", session="s", avoid=["d"])
    for _ in range(30):
        assert name_of(chosen.choose(asked, fleet, 0.0)) in {"e", "f"}
    other_weights = waiting(weights_revision="r1", hashes="x", session="s")
    assert chosen.choose(other_weights, fleet, 0.0) is None
    assert name_of(chosen.choose(waiting(weights_revision="r0"), fleet, 0.0)) in {"d", "e", "f"}
    for name in "def":
        report(fleet, name, running=4)
    assert chosen.choose(asked, fleet, 0.0) is None


@pytest.mark.parametrize("kind", Policy)
def test_every_policy_finds_the_one_replica_with_room_among_many(kind: Policy) -> None:
    fleet, chosen = fleet_of(*[f"r{number}" for number in range(100)]), policy(kind)
    for number in range(100):
        report(fleet, f"r{number}", running=1, blocks=60 if number == 77 else 2, queued=0 if number != 77 else 1000)
    assert name_of(chosen.choose(waiting(prompt=100, session="s", hashes="x"), fleet, 0.0)) == "r77"
