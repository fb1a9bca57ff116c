"""Room for newcomers beside a tenant that floods; none is left while nobody could come."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import RouterConfig, TenantConfig
from cluster.frames import Ended, Enqueue, Grant, Outcome, ReplicaInfo, Report
from cluster.router.router import Outbox, Router
from cluster.router.running_shares import PRESENT_S, RunningShares
from cluster.routing.policy import policy_of
from engine.request import EngineLoad
from tests.cluster.router_world import add_replica


class Served:
    """A shard with one replica of so many slots, which accepts at once; requests end when told."""

    def __init__(self, slots: int, blocks: int = 100_000, weights: dict[str, float] | None = None) -> None:
        tenants = {name: TenantConfig(weight=weight) for name, weight in (weights or {}).items()}
        config = RouterConfig(tenants=tenants)
        self.shard = Router(config, policy_of(config))
        self.slots, self.blocks, self.now, self.num_asked = slots, blocks, 0.0, 0
        self.tenants: dict[str, str] = {}
        self.running: dict[str, list[str]] = {}
        self.info: ReplicaInfo = add_replica(self.shard, "r", free_slots=slots, free_blocks=blocks)

    def ask(self, tenant: str, tokens: int = 4) -> bool:
        """Whether it was granted at once."""
        self.num_asked += 1
        name = f"q{self.num_asked}"
        self.tenants[name] = tenant
        self._take(self.shard.on_enqueue("g", Enqueue(name, 0, "m", tenant, 0, 1e6, tokens, 2), self.now))
        return name in self.running.get(tenant, [])

    def end(self, tenant: str) -> None:
        name = self.running[tenant].pop(0)
        self._take(self.shard.on_ended(Ended(name, 0, "m", tenant, "r", Outcome.OK, 2, finished=True), self.now))
        self._report([])

    def _take(self, outbox: Outbox) -> None:
        granted = [message.request_id for _, message in outbox if isinstance(message, Grant)]
        for name in granted:
            self.running.setdefault(self.tenants[name], []).append(name)
        if granted:
            self._report(granted)

    def _report(self, accepted: list[str]) -> None:
        running = sum(len(names) for names in self.running.values())
        free_blocks = self.blocks - 2 * running
        load = EngineLoad(1, running, 0, self.slots - running, free_blocks, 0)
        self._take(self.shard.on_report(self.info, Report(load, [(name, 0) for name in accepted]), self.now))
        self.shard.check_invariants()

    def num_running(self, tenant: str) -> int:
        return len(self.running.get(tenant, []))


def test_a_tenant_alone_has_everything_and_again_when_the_others_are_gone() -> None:
    world = Served(slots=20)
    assert all(world.ask("flood") for _ in range(20))
    other = Served(slots=20)
    assert other.ask("a")
    other.end("a")
    for _ in range(30):
        other.ask("flood")
    assert other.num_running("flood") == 19
    other.now += PRESENT_S + 1.0
    other.shard.on_tick(other.now)
    other._report([])
    assert other.num_running("flood") == 20


def test_the_room_grows_with_what_the_others_hold() -> None:
    world = Served(slots=100)
    for _ in range(25):
        world.ask("a")
    for _ in range(100):
        world.ask("flood")
    assert world.num_running("flood") == 64  # 75 less 2 * sqrt(25) + 1
    assert all(world.ask("a") for _ in range(11))


def test_within_its_share_by_weight_a_tenant_leaves_nothing() -> None:
    world = Served(slots=100, weights={"flood": 9.0})
    world.ask("a")
    for _ in range(100):
        world.ask("flood")
    assert world.num_running("flood") >= 90
    assert world.ask("a")


def test_a_peak_is_no_flood() -> None:
    """Beyond its share, but within its part of all that is asked for: up to half as much again."""
    world = Served(slots=40)
    for _ in range(12):
        world.ask("a")
    for _ in range(60):
        world.ask("flood")
    held_by_flood = world.num_running("flood")
    assert 40 / 2 < held_by_flood < 28
    assert all(world.ask("a") for _ in range(28 - held_by_flood))


def test_memory_is_left_as_slots_are() -> None:
    world = Served(slots=1000, blocks=100)  # of two blocks each: 50 requests
    world.ask("a")
    world.end("a")
    for _ in range(60):
        world.ask("flood")
    assert world.num_running("flood") < 50
    assert world.ask("a")


@settings(max_examples=60, deadline=None)
@given(
    slots=st.integers(8, 40),
    others=st.integers(1, 3),
    events=st.lists(st.tuples(st.sampled_from(["flood", "end", "ask", "leave"]), st.integers(0, 2)), max_size=80),
)
def test_who_holds_nothing_finds_a_place_at_once(slots: int, others: int, events: list[tuple[str, int]]) -> None:
    """Whatever the flood does. And all that it asks for is served in the end."""
    world = Served(slots)
    names = [f"t{number}" for number in range(others)]
    for name in names:
        assert world.ask(name)
        world.end(name)
    for _ in range(2 * slots):
        world.ask("flood")
    for what, number in events:
        name = names[number % others]
        if what == "flood":
            world.ask("flood")
        elif what == "end" and world.num_running("flood"):
            world.end("flood")
        elif what == "ask" and not any(map(world.num_running, names)):
            assert world.ask(name)
        elif what == "leave" and world.num_running(name):
            world.end(name)
    while any(world.running.values()):
        world.end(next(name for name, running in world.running.items() if running))
    assert not len(world.shard.queues()["m"])


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 500)), max_size=60), st.integers(0, 50), st.integers(0, 10_000))
def test_nobody_leaves_anything_to_itself(events: list[tuple[bool, int]], free_slots: int, free_tokens: int) -> None:
    shares = RunningShares({})
    held: list[int] = []
    for number, (takes, tokens) in enumerate(events):
        shares.asked("alone", float(number))
        if takes or not held:
            shares.take("alone", tokens)
            held.append(tokens)
        else:
            shares.give("alone", held.pop())
        shares.check_invariants()
        assert not shares.must_leave("alone", free_slots, free_tokens)
