"""Who is held to have killed a replica."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.streams.poison_rule import SILENCE, PoisonRule


def test_the_second_death_without_a_token_condemns_a_single_suspect() -> None:
    rule = PoisonRule()
    assert rule.on_death([("p", False), ("a", True)]) is None
    assert rule.on_death([("p", False), ("b", False)]) == "p"


def test_a_token_in_between_makes_it_the_first_death_again() -> None:
    rule = PoisonRule()
    for _ in range(5):
        assert rule.on_death([("a", True)]) is None
    assert rule.on_death([("a", False)]) == "a"


def test_what_was_sent_to_a_frozen_replica_and_then_to_a_killed_one_is_no_suspect() -> None:
    rule = PoisonRule()
    assert rule.on_death([("a", False)], SILENCE) is None
    assert rule.on_death([("a", False)]) is None
    assert rule.may_run("a")
    assert rule.on_death([("a", False)]) == "a"


def test_who_freezes_one_replica_after_the_other_is_condemned_in_the_end() -> None:
    rule = PoisonRule()
    assert [rule.on_death([("p", False)], SILENCE) for _ in range(4)] == [None, None, None, "p"]


def test_suspects_that_died_together_are_tried_one_at_a_time() -> None:
    rule = PoisonRule()
    together = [("a", False), ("p", False), ("b", False)]
    assert rule.on_death(together) is None
    assert rule.on_death(together) is None
    assert not any(rule.may_run(name) for name in "apb")
    assert rule.next_trial() == "a" and rule.may_run("a") and rule.next_trial() is None
    rule.forget("a")  # it gave a token
    assert rule.next_trial() == "p"
    assert rule.on_death([("p", False), ("a", True), ("c", False)]) == "p"
    rule.forget("p")
    assert rule.next_trial() == "b" and not rule.is_tried("p")
    rule.forget("b")
    assert rule.next_trial() is None


def test_who_leaves_the_lane_is_not_tried() -> None:
    rule = PoisonRule()
    for _ in range(2):
        rule.on_death([("a", False), ("b", False)])
    rule.forget("a")
    assert rule.next_trial() == "b"


def hunt(num_innocent: int, killers: set[str]) -> tuple[set[str], int]:
    """Everybody runs on one replica; a killer kills it before anybody gives a token. Returns the condemned, deaths."""
    rule = PoisonRule()
    alive = {f"i{number}" for number in range(num_innocent)} | killers
    running, condemned, num_deaths = set(alive), set(), 0
    while alive:
        running |= {name for name in alive if rule.may_run(name)}
        trial = rule.next_trial()
        running |= {trial} if trial else set()
        if running & killers:
            num_deaths += 1
            guilty = rule.on_death((name, False) for name in sorted(running))
            if guilty is not None:
                condemned.add(guilty)
                alive.discard(guilty)
                rule.forget(guilty)
        else:
            for name in running:
                rule.forget(name)
            alive -= running
        running = set()
    return condemned, num_deaths


@given(st.integers(0, 20), st.integers(0, 4))
def test_all_killers_and_nobody_else_are_condemned(num_innocent: int, num_killers: int) -> None:
    killers = {f"k{number}" for number in range(num_killers)}
    condemned, num_deaths = hunt(num_innocent, killers)
    assert condemned == killers
    assert num_deaths <= 2 + num_killers
