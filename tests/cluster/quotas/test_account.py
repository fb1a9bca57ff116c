"""A gateway and the book of limits: batches, losses, life alone, returns; the limit holds through all of it."""

from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.frames import QuotaTurn
from cluster.quotas.account import AWAY_S, Account, Purse
from cluster.quotas.book import Book
from cluster.quotas.bucket import WINDOW_S, Ask, Change, Reply, Want

KEY, LIMIT = "acme/tokens", 1000.0
TICK_S = 0.25


class Gateway:
    """An account, what it holds, and whether it reaches the book."""

    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name = world, name
        self.account = Account("the book", world.num_gateways, lambda: world.now)
        self.held: list[tuple[Purse, float, float]] = []  #: and since when
        self.replies: list[Reply] = []
        self.connect()

    def connect(self) -> None:
        self.is_connected = True
        self.account.on_store(self.say)

    def cut(self) -> None:
        self.is_connected = False

    def say(self, turn: QuotaTurn) -> None:
        answer = self.world.book.turn(self.name, turn, self.world.now) if self.is_connected else None
        if answer is not None:
            self.account.on_answer(answer)

    def ask(self, amount: float) -> None:
        self.account.put(Ask([Want(KEY, LIMIT, amount)]), partial(self._done, amount))

    def _done(self, amount: float, reply: Reply, purse: Purse) -> None:
        self.replies.append(reply)
        if reply.granted:
            self.held.append((purse, amount, self.world.now))

    def use(self, share: float) -> None:
        """A part of all that it holds."""
        for n, (purse, amount, since) in enumerate(self.held):
            self.held[n] = (purse, amount * (1.0 - share), since)
            self.world.used.append((self.world.now, since, amount * share))
            purse.change([Change(KEY, LIMIT, burned=amount * share)])

    def grab(self) -> None:
        """Take and use all that can be had."""
        for halving in range(10):
            self.ask(LIMIT / 2**halving)
        self.use(1.0)

    def release(self) -> None:
        for purse, amount, _ in self.held:
            purse.change([Change(KEY, LIMIT, released=amount)])
        self.held.clear()


class World:
    def __init__(self, num_gateways: int) -> None:
        self.num_gateways, self.now = num_gateways, 0.0
        self.book = Book()
        self.used: list[tuple[float, float, float]] = []  #: when, granted when, how much
        self.gateways = [Gateway(self, f"g{n}") for n in range(num_gateways)]

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += TICK_S
            for gateway in self.gateways:
                gateway.account.tick()

    def lose_the_book(self) -> None:
        self.book = Book()

    def replace(self, who: int) -> None:
        """The gateway dies; another one takes its place."""
        dead = self.gateways[who]
        self.book.lost(dead.name, self.now)
        self.gateways[who] = Gateway(self, dead.name + "'")

    def most_over(self, when_granted: bool = False) -> float:
        """By how much the worst span of time is over what may be used in it, counted when it was used, or granted."""
        worst = -LIMIT
        used = sorted((granted_at if when_granted else at, amount) for at, granted_at, amount in self.used)
        for first, (since, _) in enumerate(used):
            total = 0.0
            for at, amount in used[first:]:
                total += amount
                worst = max(worst, total - LIMIT * (1.0 + (at - since) / WINDOW_S))
        return worst


def test_what_is_not_used_can_be_asked_for_again_at_once() -> None:
    gateway = World(1).gateways[0]
    for _ in range(20):
        gateway.ask(900.0)
        gateway.release()
    assert [reply.granted for reply in gateway.replies] == [True] * 20


def test_what_is_asked_at_the_same_time_is_one_turn() -> None:
    world = World(1)
    gateway, turns = world.gateways[0], []
    gateway.account.on_lost()
    for _ in range(30):
        gateway.ask(100.0)
    gateway.account.on_store(lambda turn: (turns.append(turn), gateway.say(turn)))
    assert [len(turn.asks) for turn in turns] == [30]
    assert sum(reply.granted for reply in gateway.replies) == 10


def test_an_asker_that_left_gives_back_what_it_is_granted() -> None:
    gateway = World(1).gateways[0]
    turns: list[QuotaTurn] = []
    gateway.account.on_store(turns.append)
    asked = gateway.account.put(Ask([Want(KEY, LIMIT, 1000.0)]), lambda reply, purse: None)
    gateway.say(turns[0])
    asked.withdraw()
    gateway.say(turns[1])
    gateway.say(turns[2])  # at once
    gateway.ask(1000.0)
    gateway.say(turns[3])
    assert [reply.granted for reply in gateway.replies] == [True]


def test_what_is_released_can_be_asked_for_at_another_gateway_at_once() -> None:
    world = World(2)
    world.wait(1.0)
    one, other = world.gateways
    one.ask(900.0)
    one.release()
    other.ask(900.0)
    assert [reply.granted for reply in one.replies + other.replies] == [True, True]


def test_without_the_book_askers_wait_and_then_get_the_share_of_one_gateway() -> None:
    world = World(2)
    world.wait(1.0)
    for gateway in world.gateways:
        gateway.cut()
        gateway.ask(100.0)
    world.wait(AWAY_S - TICK_S)
    assert world.gateways[0].replies == []
    world.wait(1.0)
    assert [reply.granted for reply in world.gateways[0].replies] == [False]  # it begins with nothing
    world.wait(100.0 / (LIMIT / 2) * WINDOW_S)
    world.gateways[0].ask(100.0)
    assert world.gateways[0].replies[-1].granted
    assert world.gateways[0].account.is_alone
    world.gateways[0].connect()
    assert not world.gateways[0].account.is_alone
    assert world.gateways[0].account.num_times_alone == 1


def test_a_return_doubles_no_budget() -> None:
    world = World(2)
    world.wait(1.0)
    for gateway in world.gateways:
        gateway.cut()
    world.wait(120.0)
    for gateway in world.gateways:
        gateway.ask(500.0)
        gateway.use(1.0)
        gateway.connect()
        gateway.ask(500.0)
        gateway.use(1.0)
    world.wait(0.5)
    world.gateways[0].ask(200.0)
    assert world.gateways[0].replies[-1].granted is False
    assert world.most_over() <= 1e-3


def test_what_is_held_is_told_to_a_book_that_begins_anew() -> None:
    world = World(1)
    gateway = world.gateways[0]
    gateway.ask(800.0)
    world.lose_the_book()
    world.wait(61.0)
    gateway.ask(201.0)
    assert gateway.replies[-1].granted is False
    gateway.ask(200.0)
    assert gateway.replies[-1].granted
    gateway.use(1.0)
    assert world.most_over() <= 1e-3


#: One loss at a time: whoever knows a lost book, or has taken something while alone, is there to say so.
ACTIONS = st.tuples(
    st.integers(0, 2),
    st.sampled_from(["ask"] * 2 + ["use"] * 2 + ["grab"] * 4 + ["wait"] * 3 + ["connect"] * 2
                    + ["release", "cut", "cut_all", "replace", "lose"]),
    st.floats(0.001, 1.0),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 3), st.lists(ACTIONS, max_size=40))
def test_no_span_of_time_uses_more_than_the_limit(num_gateways: int, actions: list[tuple[int, str, float]]) -> None:
    world = World(num_gateways)
    lost = was_cut = False
    for number, what, share in actions:
        who = number % num_gateways
        gateway = world.gateways[who]
        match what:
            case "ask":
                gateway.ask(share * LIMIT)
            case "grab":
                gateway.grab()
            case "use":
                gateway.use(share)
            case "release":
                gateway.release()
            case "wait":
                world.wait(share * 20.0)
            case "cut" | "cut_all":
                was_cut = True
                for each in world.gateways if what == "cut_all" else [gateway]:
                    each.cut()
            case "connect":
                gateway.connect()
            case "replace" if not lost and gateway.is_connected and not gateway.account.is_alone:
                gateway.use(1.0)
                world.replace(who)
            case "lose" if not lost and all(each.is_connected for each in world.gateways):
                lost = True
                world.lose_the_book()
                world.wait(1.0)
    assert world.most_over(when_granted=True) <= 1e-3
    if not was_cut:
        assert world.most_over() <= 1e-3
