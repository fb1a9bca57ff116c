"""Turns between tenants: by hand, and the fairness bound whatever comes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import TenantConfig
from cluster.frames import Enqueue
from cluster.router.fair_band import LOOKS, MAX_IDLE_TENANTS, FairBand
from cluster.router.waiting import Waiting


def entry(name: str, tenant: str, cost: int = 10, since: float = 0.0, attempt: int = 0) -> Waiting:
    asked = Enqueue(name, attempt, "m", tenant, 0, 60.0, cost, 1)
    return Waiting(asked, "g", since, 60.0, cost, is_queued=True)


class Turns:
    """A band and who was served how much."""

    def __init__(self, **weights: float) -> None:
        self.band = FairBand({name: TenantConfig(weight=weight) for name, weight in weights.items()})
        self.served: dict[str, int] = {}

    def push(self, *entries: Waiting) -> None:
        for waiting in entries:
            self.band.push(waiting)
            self.band.check_invariants()

    def take(self) -> str:
        """Serve whose turn it is; its name."""
        head = self.band.peek()
        assert head is not None
        self.band.served(head)
        head.had_turn = True
        self.band.left(head)
        self.band.charge(head.tenant, head.cost)
        self.served[head.tenant] = self.served.get(head.tenant, 0) + head.cost
        self.band.check_invariants()
        return head.descriptor.request_id

    def leave(self, waiting: Waiting) -> None:
        waiting.is_queued = False
        self.band.left(waiting)
        self.band.check_invariants()


def test_tenants_take_turns_by_cost_and_not_by_number() -> None:
    turns = Turns()
    turns.push(*[entry(f"a{i}", "a", cost=30) for i in range(3)], *[entry(f"b{i}", "b", cost=10) for i in range(6)])
    assert [turns.take() for _ in range(8)] == ["a0", "b0", "b1", "b2", "a1", "b3", "b4", "b5"]


def test_a_weight_of_two_is_twice_the_service() -> None:
    turns = Turns(a=2.0)
    turns.push(*[entry(f"{name}{i}", name) for name in "ab" for i in range(40)])
    for _ in range(30):
        turns.take()
    assert turns.served == {"a": 200, "b": 100}


def test_idle_time_is_no_savings() -> None:
    turns = Turns()
    turns.push(*[entry(f"a{i}", "a") for i in range(30)])
    for _ in range(20):
        turns.take()
    turns.push(*[entry(f"b{i}", "b") for i in range(10)])
    assert [turns.take()[0] for _ in range(10)].count("b") in (5, 6)


def test_a_debt_is_not_forgotten_by_going_idle() -> None:
    turns = Turns()
    turns.push(entry("a0", "a", cost=100), *[entry(f"b{i}", "b") for i in range(20)])
    turns.take()
    turns.push(entry("a1", "a", cost=100))
    assert [turns.take() for _ in range(10)] == [f"b{i}" for i in range(10)]


def test_migrations_go_first_in_their_order() -> None:
    turns = Turns()
    turns.push(entry("a", "a"), entry("late", "z", since=2.0, attempt=1), entry("early", "z", since=1.0, attempt=2))
    assert [turns.take() for _ in range(3)] == ["early", "late", "a"]


def test_who_waited_in_another_shard_stands_where_it_came_first() -> None:
    turns = Turns()
    turns.push(entry("a", "a", since=5.0), entry("moved", "a", since=1.0))
    assert turns.take() == "moved"


def test_a_correction_moves_a_waiting_tenant_both_ways() -> None:
    turns = Turns()
    turns.push(*[entry(f"{name}{i}", name) for name in "ab" for i in range(9)])
    turns.band.charge("a", 35)
    assert [turns.take() for _ in range(4)] == ["b0", "b1", "b2", "b3"]
    turns.band.charge("a", -35)
    assert [turns.take() for _ in range(4)] == ["a0", "a1", "a2", "a3"]


def test_idle_tenants_are_bounded() -> None:
    turns = Turns()
    waiting = entry("stays", "stays")
    turns.band.push(waiting)
    for number in range(3 * MAX_IDLE_TENANTS):
        passing = entry(f"q{number}", f"tenant-{number}")
        turns.band.push(passing)
        passing.is_queued = False
        turns.band.left(passing)
    assert turns.band.num_tenants <= MAX_IDLE_TENANTS + 2
    turns.band.check_invariants()
    assert turns.band.peek() is waiting


steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from("abc"), st.integers(1, 50)),
        st.tuples(st.just("take"), st.just(""), st.just(0)),
        st.tuples(st.just("leave"), st.sampled_from("abc"), st.integers(0, 5)),
    ),
    max_size=60,
)


@settings(max_examples=80, deadline=None)
@given(steps, st.floats(0.25, 4.0))
def test_two_tenants_that_both_wait_differ_by_their_largest_requests(
    events: list[tuple[str, str, int]], w: float
) -> None:
    """The bound, for every stretch of time in which both have something waiting: so nobody starves."""
    weights = {"a": 1.0, "b": w, "c": 1.0}
    turns, lines = Turns(**weights), {name: [] for name in weights}
    together: dict[tuple[str, str], dict[str, int]] = {}
    for number, (what, name, size) in enumerate(events):
        if what == "push":
            lines[name].append(entry(f"{number}", name, cost=size))
            turns.push(lines[name][-1])
        elif what == "leave" and len(lines[name]) > size:
            turns.leave(lines[name].pop(size))
        elif what == "take" and turns.band.peek() is not None:
            head = turns.band.peek()
            assert head is not None
            turns.take()
            lines[head.tenant].remove(head)
        for pair in ("ab", "ac", "bc"):
            if all(lines[one] for one in pair):
                start = together.setdefault((pair[0], pair[1]), {one: turns.served.get(one, 0) for one in pair})
                one, other = ((turns.served.get(n, 0) - start[n]) / weights[n] for n in pair)
                assert abs(one - other) <= 50 / weights[pair[0]] + 50 / weights[pair[1]] + 1e-6
            else:
                together.pop((pair[0], pair[1]), None)


def test_tenants_that_must_wait_are_passed_over_and_keep_their_places() -> None:
    turns = Turns()
    turns.push(entry("a1", "a"), entry("a2", "a"), entry("b1", "b"), entry("c1", "c"))
    head = turns.band.peek({"a", "b"}.__contains__)
    assert head is not None and head.tenant == "c"
    assert turns.band.peek({"a", "b", "c"}.__contains__) is None
    turns.band.check_invariants()
    assert turns.take() == "a1"


def test_migrations_pass_nobody_by_and_a_crowd_is_no_flood() -> None:
    turns = Turns()
    turns.push(*(entry(f"q{number}", f"t{number:02}") for number in range(LOOKS + 5)))
    head = turns.band.peek(lambda tenant: True)
    assert head is not None and head.tenant == "t00"
    turns.push(entry("moves", "t01", attempt=1))
    assert turns.band.peek(lambda tenant: True) is not head
