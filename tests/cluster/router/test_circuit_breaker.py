"""Breakers by hand, and as a state machine against a plain model."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.frames import Outcome
from cluster.router.circuit_breaker import BACKOFF_S, FAILURES_TO_OPEN, PROBE_S, BreakerState, CircuitBreakers

FAILED, OK, NEUTRAL = Outcome.FAILED, Outcome.OK, Outcome.NEUTRAL


def breakers(*names: str) -> CircuitBreakers:
    fleet = CircuitBreakers()
    for name in names:
        fleet.add(name)
    return fleet


def fail(fleet: CircuitBreakers, name: str, now: float = 0.0, times: int = FAILURES_TO_OPEN) -> None:
    for number in range(times):
        fleet.record(name, (f"{name}{number}", 0), FAILED, now)


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    fleet = breakers("a", "b")
    fail(fleet, "a", times=2)
    fleet.record("a", ("x", 0), OK, 0.0)
    fail(fleet, "a", times=2)
    assert fleet.state("a") is BreakerState.CLOSED and fleet.allows("a")
    fail(fleet, "a", times=1)
    assert fleet.state("a") is BreakerState.OPEN and not fleet.allows("a")


def test_neutral_ends_count_neither_way() -> None:
    fleet = breakers("a", "b")
    fail(fleet, "a", times=2)
    fleet.record("a", ("x", 0), NEUTRAL, 0.0)
    fail(fleet, "a", times=1)
    assert fleet.state("a") is BreakerState.OPEN


def test_tokens_while_the_probe_runs_let_others_in_but_are_no_success_yet() -> None:
    fleet = breakers("a", "b")
    fail(fleet, "a")
    fleet.pass_time(BACKOFF_S)
    fleet.dispatched("a", ("probe", 0), BACKOFF_S, 100)
    fleet.reported("a", 101, {("probe", 0): None})  # it has not come there yet
    fleet.reported("a", 100, ())
    assert not fleet.allows("a")
    fleet.reported("a", 101, ())
    assert fleet.state("a") is BreakerState.CLOSED
    fleet.check_invariants()
    fail(fleet, "a", now=2.0)
    fleet.pass_time(2.0 + BACKOFF_S)
    assert fleet.state("a") is BreakerState.OPEN  # for twice as long
    fleet.pass_time(2.0 + 2 * BACKOFF_S)
    fleet.dispatched("a", ("again", 0), 4.0, 101)
    fleet.reported("a", 102, ())
    fleet.record("a", ("again", 0), OK, 5.0)
    fail(fleet, "a", now=6.0)
    fleet.pass_time(6.0 + BACKOFF_S)
    assert fleet.state("a") is BreakerState.HALF_OPEN


def test_one_probe_decides_and_the_backoff_doubles() -> None:
    fleet = breakers("a", "b")
    fail(fleet, "a")
    now = BACKOFF_S
    fleet.pass_time(now - 0.01)
    assert not fleet.allows("a")
    fleet.pass_time(now)
    assert fleet.state("a") is BreakerState.HALF_OPEN and fleet.allows("a")
    fleet.dispatched("a", ("probe", 0), now)
    assert not fleet.allows("a")
    fleet.record("a", ("older", 0), OK, now)  # sent before it opened: says nothing
    assert not fleet.allows("a")
    fleet.record("a", ("probe", 0), FAILED, now)
    fleet.pass_time(now + BACKOFF_S)
    assert fleet.state("a") is BreakerState.OPEN
    fleet.pass_time(now + 2 * BACKOFF_S)
    fleet.dispatched("a", ("second", 0), now)
    fleet.record("a", ("second", 0), OK, now)
    assert fleet.state("a") is BreakerState.CLOSED
    fail(fleet, "a", now, times=2)
    assert fleet.allows("a")


def test_an_unused_or_neutral_or_unheard_probe_makes_room_for_another() -> None:
    fleet = breakers("a", "b")
    fail(fleet, "a")
    fleet.pass_time(BACKOFF_S)
    fleet.dispatched("a", ("one", 0), BACKOFF_S)
    fleet.returned("a", ("one", 0))
    assert fleet.allows("a")
    fleet.dispatched("a", ("two", 0), BACKOFF_S)
    fleet.record("a", ("two", 0), NEUTRAL, BACKOFF_S)
    assert fleet.allows("a")
    fleet.dispatched("a", ("three", 0), BACKOFF_S)
    fleet.pass_time(BACKOFF_S + PROBE_S)
    assert fleet.allows("a") and fleet.state("a") is BreakerState.HALF_OPEN


def test_half_of_the_fleet_stays_in() -> None:
    fleet = breakers(*"abcde")
    for name in "abcde":
        fail(fleet, name)
    assert [name for name in "abcde" if fleet.allows(name)] == ["c", "d", "e"]
    assert fleet.remove("e") == []  # two of four
    assert fleet.remove("d") == ["a"]  # of three, one may be out: the longest is let in
    alone = breakers("a")
    fail(alone, "a", times=10)
    assert alone.allows("a")


def test_who_announces_anew_begins_closed() -> None:
    fleet = breakers("a", "b")
    fail(fleet, "a")
    fleet.add("a")
    assert fleet.allows("a")
    fleet.check_invariants()


class BreakerMachine(RuleBasedStateMachine):
    """Any replicas, requests, ends and times. The model: who has a probe, and since when who is open."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = breakers("r0", "r1", "r2")
        self.names = ["r0", "r1", "r2"]
        self.num_named = 3
        self.now = 0.0
        self.num_sent = 0
        self.running: dict[tuple[str, int], str] = {}
        self.probes: dict[str, tuple[str, int]] = {}
        self.opened_at: dict[str, float] = {}

    @rule()
    def come(self) -> None:
        self.names.append(f"r{self.num_named}")
        self.num_named += 1
        self.fleet.add(self.names[-1])

    @precondition(lambda self: len(self.names) > 1)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.names))
        self.names.remove(name)
        for closed in [name, *self.fleet.remove(name)]:
            self.probes.pop(closed, None)
            self.opened_at.pop(closed, None)

    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.names))
        if not self.fleet.allows(name):
            return
        self.num_sent += 1
        key = (f"q{self.num_sent}", 0)
        if self.fleet.state(name) is BreakerState.HALF_OPEN:
            assert name not in self.probes, "a second probe"
            self.probes[name] = key
        self.fleet.dispatched(name, key, self.now)
        self.running[key] = name

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=st.sampled_from(list(Outcome) + [FAILED] * 3))
    def end(self, data: st.DataObject, outcome: Outcome) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        name = self.running.pop(key)
        was = self.fleet.state(name) if name in self.names else None
        self.fleet.record(name, key, outcome, self.now)
        if was is None:
            return
        is_probe = self.probes.get(name) == key
        state = self.fleet.state(name)
        if is_probe:
            del self.probes[name]
            expected = {OK: BreakerState.CLOSED, FAILED: BreakerState.OPEN, NEUTRAL: BreakerState.HALF_OPEN}
            assert state is expected[outcome]
        elif was is not BreakerState.CLOSED:
            assert state is was, "what was sent before it opened must not count"
        elif outcome is not FAILED:
            assert state is BreakerState.CLOSED, "only failures open a breaker"
        if state is BreakerState.OPEN and (was is BreakerState.CLOSED or is_probe):
            self.opened_at[name] = self.now

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 3.0, 20.0, 70.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.fleet.pass_time(self.now)
        for name in self.names:
            if self.fleet.state(name) is BreakerState.HALF_OPEN and self.fleet.allows(name):
                self.probes.pop(name, None)  # given up
                assert self.now - self.opened_at[name] >= BACKOFF_S
            if self.fleet.state(name) is BreakerState.OPEN:
                assert self.now - self.opened_at[name] < 60.0, "open for longer than the longest backoff"

    @invariant()
    def bounded(self) -> None:
        self.fleet.check_invariants()
        num_out = sum(self.fleet.state(name) is not BreakerState.CLOSED for name in self.names)
        assert num_out <= len(self.names) // 2


BreakerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestBreakerMachine = BreakerMachine.TestCase
