"""The shared limits: never over them, whatever the interleaving of gateways, calls, losses and returns."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.frames import QuotaAnswer, QuotaTurn
from cluster.quotas.book import FORGET_S, LEASE_S, Book
from cluster.quotas.bucket import WINDOW_S, Ask, Change, Want

KEY, LIMIT = "acme/tokens", 1000.0


class Desk:
    """One gateway at a book."""

    def __init__(self, book: Book, name: str = "g0", num_gateways: int = 1) -> None:
        self.book, self.name, self.num_gateways = book, name, num_gateways
        self.number, self.epoch, self.seen = 0, "", 0.0

    def turn(self, now: float, *amounts: float, **change: float) -> QuotaAnswer:
        self.number += 1
        asks = [Ask([Want(KEY, LIMIT, amount)]) for amount in amounts]
        changes = [Change(KEY, LIMIT, **change)] if change else []
        answer = self.book.turn(
            self.name, QuotaTurn(self.number, self.num_gateways, self.epoch, self.seen, changes, asks), now
        )
        assert answer is not None
        self.epoch, self.seen = answer.epoch, answer.seen
        return answer

    def come(self, now: float) -> "Desk":
        """Twice: the first turn only says hello."""
        assert self.turn(now).is_back
        assert not self.turn(now).is_back
        return self

    def ask(self, now: float, amount: float, **change: float) -> bool:
        return self.turn(now, amount, **change).replies[0].granted

    def usable(self, now: float) -> float:
        return self.turn(now, 0.0).replies[0].usable[0]


def test_a_new_book_begins_full_and_what_is_held_is_gone() -> None:
    desk = Desk(Book()).come(0.0)
    assert desk.ask(0.0, 600.0)
    assert not desk.ask(0.0, 600.0)
    assert desk.ask(0.0, 400.0)
    assert desk.usable(0.0) == 0.0


def test_what_is_not_used_comes_back_at_once_and_what_is_used_fills_up_again() -> None:
    desk = Desk(Book()).come(0.0)
    assert desk.ask(0.0, 1000.0)
    assert desk.usable(0.0) == 0.0
    desk.turn(1.0, burned=300.0, released=700.0)
    assert desk.usable(1.0) == 700.0
    for second in range(2, 60):
        desk.turn(second)
    assert desk.usable(1.0 + 300.0 * WINDOW_S / LIMIT) == 1000.0


def test_what_is_held_does_not_fill_up_again() -> None:
    """Else a long stream's unused part would come back on top of a full bucket."""
    desk = Desk(Book()).come(0.0)
    assert desk.ask(0.0, 800.0)
    for second in range(1, 120):
        assert desk.usable(second) == 200.0
    desk.turn(120.0, released=800.0)
    assert desk.usable(120.0) == 1000.0


def test_the_time_until_it_fits_is_exact() -> None:
    desk = Desk(Book()).come(0.0)
    desk.turn(0.0, 1000.0)
    desk.turn(0.0, burned=1000.0)
    wait_s = 400.0 * WINDOW_S / LIMIT
    for second in range(1, 24):
        desk.turn(second)
    assert not desk.ask(wait_s - 0.001, 400.0)
    assert desk.ask(wait_s, 400.0)


def test_a_turn_said_twice_counts_once() -> None:
    book = Book()
    desk = Desk(book).come(0.0)
    first = desk.turn(0.0, 600.0)
    again = book.turn("g0", QuotaTurn(desk.number, 1, desk.epoch, desk.seen, [], [Ask([Want(KEY, LIMIT, 600.0)])]), 0.5)
    assert again == first
    desk.turn(0.0, released=100.0)
    settled = QuotaTurn(desk.number, 1, desk.epoch, desk.seen, [Change(KEY, LIMIT, released=100.0)], [])
    book.turn("g0", settled, 0.0)
    assert book.turn("g0", QuotaTurn(1, 1), 0.0) is None
    assert desk.usable(0.0) == 500.0


def test_nobody_gives_back_what_it_does_not_hold() -> None:
    desk = Desk(Book()).come(0.0)
    desk.turn(0.0, 300.0)
    desk.turn(0.0, burned=250.0)
    desk.turn(0.0, released=5000.0)
    assert desk.usable(0.0) == 750.0


def test_the_share_of_a_gateway_that_is_away_is_left_alone() -> None:
    book = Book()
    one, two = Desk(book, "g0", 2).come(0.0), Desk(book, "g1", 2).come(0.0)
    assert two.ask(0.5, 1000.0, burned=0.0)
    two.turn(0.5, burned=1000.0)
    for tenth in range(5, 200):
        one.turn(tenth / 10)
    present_s = (LEASE_S + 0.5) - 0.5
    assert abs(one.usable(19.9) - (LIMIT / WINDOW_S * (present_s + (19.9 - 2.5) / 2) - LIMIT / 2)) < 1.0


def test_a_gateway_that_was_alone_brings_what_it_took_before_its_share_is_touched() -> None:
    book = Book()
    one, two = Desk(book, "g0", 2).come(0.0), Desk(book, "g1", 2).come(0.0)
    one.turn(1.0)
    one.turn(2.5)
    assert one.usable(2.5) == 500.0  # the other half may be taken where nobody sees it
    assert two.turn(3.0, 100.0).is_back
    assert one.usable(3.0) == 500.0
    two.turn(3.0, taken=400.0)
    assert one.usable(3.0) == 600.0


def test_what_a_dead_gateway_held_counts_as_used_and_is_back_within_a_minute() -> None:
    book = Book()
    one, two = Desk(book, "g0").come(0.0), Desk(book, "g1").come(0.0)
    assert two.ask(0.0, 800.0)
    book.lost("g1", 0.0)
    for tenth in range(80):
        assert one.usable(tenth / 10) <= 200.0
    for tenth in range(80, 600):
        one.turn(tenth / 10)
    assert one.usable(60.0) == 1000.0
    assert FORGET_S + 800.0 / LIMIT * WINDOW_S <= 60.0


def test_a_bucket_that_nobody_looked_at_is_no_fuller_for_it() -> None:
    book = Book()
    one, two = Desk(book, "g0").come(0.0), Desk(book, "g1").come(0.0)
    assert two.ask(0.0, 1000.0)
    book.lost("g1", 0.0)
    for tenth in range(200):
        one.turn(tenth / 10)
    assert one.usable(20.0) == pytest.approx(12.0 * LIMIT / WINDOW_S, abs=2.0)


def test_a_resumed_stream_goes_on_with_what_the_dead_gateway_held() -> None:
    book = Book()
    one, two = Desk(book, "g0").come(0.0), Desk(book, "g1").come(0.0)
    assert two.ask(0.0, 900.0)
    book.lost("g1", 0.0)
    one.number += 1
    inherits = QuotaTurn(one.number, 1, one.epoch, one.seen, [], [Ask([Want(KEY, LIMIT, 700.0)], True)])
    answer = book.turn("g0", inherits, 0.1)
    assert answer is not None
    assert answer.replies[0].granted
    assert answer.replies[0].usable == [100.0]


def test_a_book_that_takes_the_place_of_a_lost_one_begins_empty() -> None:
    desk = Desk(Book()).come(0.0)
    desk.ask(0.0, 100.0)
    desk.book = Book()
    desk.come(0.0)
    assert desk.usable(0.0) == 0.0
    desk.turn(0.0, burned=-100.0)  # what it still holds
    assert desk.usable(1.0) == LIMIT / WINDOW_S


def test_a_book_that_began_full_in_error_is_emptied_by_a_gateway_that_knew_the_lost_one() -> None:
    old = Desk(Book()).come(0.0)
    book = Book()
    new = Desk(book, "new").come(0.0)
    assert new.usable(0.0) == LIMIT
    old.book = book
    old.turn(0.0)
    assert new.usable(0.0) == 0.0


class World:
    """Gateways that ask, use, release, fall silent, live alone and come back; `used`: when tokens were used."""

    def __init__(self, num_gateways: int) -> None:
        self.num, self.now = num_gateways, 0.0
        self.books = Book()
        self.desks = [Desk(self.books, f"g{n}", num_gateways) for n in range(num_gateways)]
        self.held = [0.0] * num_gateways
        self.used: list[tuple[float, float]] = []

    def bank(self) -> float:
        bucket = self.books._buckets.get(KEY)
        return LIMIT if bucket is None else bucket.bank

    def act(self, who: int, what: str, amount: float) -> None:
        desk = self.desks[who]
        if what == "ask":
            answer = desk.turn(self.now, amount)
            if answer.replies and answer.replies[0].granted:
                self.held[who] += amount
        elif what == "use":
            used = min(amount, self.held[who])
            self.held[who] -= used
            self.used.append((self.now, used))
            desk.turn(self.now, burned=used)
        elif what == "release":
            released = min(amount, self.held[who])
            self.held[who] -= released
            desk.turn(self.now, released=released)
        elif what == "die":
            self.held[who] = 0.0
            self.books.lost(desk.name, self.now)
            self.desks[who] = Desk(self.books, f"{desk.name}'", self.num)
        else:
            self.now += amount / 100.0


ACTIONS = st.tuples(
    st.integers(0, 3),
    st.sampled_from(["ask", "ask", "use", "release", "wait", "wait", "die"]),
    st.integers(1, 1000).map(float),
)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.lists(ACTIONS, max_size=60))
def test_no_window_of_time_uses_more_than_the_limit(num_gateways: int, actions: list[tuple[int, str, float]]) -> None:
    world = World(num_gateways)
    for who, what, amount in actions:
        world.act(who % num_gateways, what, amount)
        assert world.bank() <= LIMIT + 1e-6
    for first, (since, _) in enumerate(world.used):
        total = 0.0
        for at, amount in world.used[first:]:
            total += amount
            assert total <= LIMIT * (1.0 + (at - since) / WINDOW_S) + 1e-3
