"""Limits in a real Redis: the script decides as the book does, and losing Redis opens nothing."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.frames import QuotaAnswer, QuotaTurn
from cluster.quotas.account import AWAY_S, Account, Purse
from cluster.quotas.book import Book
from cluster.quotas.bucket import WINDOW_S, Ask, Change, Reply, Want
from deployments.redis_book import PREFIX, RedisBook, book_script
from tests.deployments.redis_server import RedisServer, redis_server
from tests.deployments.serving_world import until

LIMIT = 1000.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


class ScriptAtATime:
    """The script with its clock in the test's hands: all else as it is."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url)
        self._redis.flushall()
        script = book_script()
        assert script.count("redis.call('TIME')") == 1
        self._script = self._redis.register_script(script.replace("redis.call('TIME')", "{ARGV[3], 0}"))

    def turn(self, name: str, turn: QuotaTurn, now: float) -> QuotaAnswer | None:
        answered: Any = self._script(keys=[PREFIX], args=[name, msgspec.msgpack.encode(turn), repr(now)])
        return None if answered is None else msgspec.msgpack.decode(answered, type=QuotaAnswer)


def rounded(answer: QuotaAnswer | None) -> object:
    if answer is None:
        return None
    replies = [(reply.granted, [round(usable, 6) for usable in reply.usable]) for reply in answer.replies]
    return (answer.number, answer.epoch, round(answer.seen, 6), answer.is_back, replies)


AMOUNTS = st.integers(0, 1000).map(float)
KEYS = st.sampled_from(["a", "b"])
ASKS = st.builds(
    Ask,
    st.lists(st.builds(Want, KEYS, st.just(LIMIT), AMOUNTS), min_size=1, max_size=2, unique_by=lambda want: want.key),
    st.booleans(),
)
CHANGES = st.builds(
    Change, KEYS, st.just(LIMIT), st.integers(-500, 500).map(float), AMOUNTS, st.sampled_from([0.0, 77.0])
)
TURNS = st.tuples(
    st.sampled_from(["g0", "g1", "g2"]), st.lists(CHANGES, max_size=2), st.lists(ASKS, max_size=2),
    st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 3.0, 12.0]), st.sampled_from([0, 0, 0, 0, 1]), st.booleans(),
)  # fmt: skip


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(num_gateways=st.integers(1, 3), turns=st.lists(TURNS, max_size=25))
def test_the_script_decides_as_the_book_does(
    server: RedisServer, num_gateways: int, turns: list[tuple[str, list[Change], list[Ask], float, int, bool]]
) -> None:
    book, script = Book(), ScriptAtATime(server.url)
    numbers: dict[str, int] = {}
    known: dict[str, tuple[str, float]] = {}
    now = 1000.0
    for name, changes, asks, wait_s, back, forgets in turns:
        now += wait_s
        numbers[name] = max(1, numbers.get(name, 0) + 1 - back)
        epoch, seen = ("", 0.0) if forgets else known.get(name, ("", 0.0))
        turn = QuotaTurn(numbers[name], num_gateways, epoch, seen, changes, asks)
        answer = book.turn(name, turn, now)
        assert rounded(script.turn(name, turn, now)) == rounded(answer)
        if answer is not None:
            known[name] = (answer.epoch, answer.seen)


def test_a_redis_that_has_forgotten_the_last_writes_begins_empty(server: RedisServer) -> None:
    script = ScriptAtATime(server.url)
    script.turn("g0", QuotaTurn(1, 1), 100.0)
    script.turn("g0", QuotaTurn(2, 1), 100.0)
    lost = script.turn("g0", QuotaTurn(3, 1, "g0/1", 75.0, [], [Ask([Want("a", LIMIT, 1.0)])]), 101.0)
    assert lost is not None
    assert lost.epoch == "g0/3"
    assert [reply.granted for reply in lost.replies] == [True]  # of the second that has passed, and no more
    assert lost.replies[0].usable[0] == pytest.approx(LIMIT / WINDOW_S - 1.0)


class Gateway:
    """One account at a Redis, ticking."""

    _numbers = itertools.count()

    def __init__(self, server: RedisServer, num_gateways: int) -> None:
        self.account = Account("redis", num_gateways, time.monotonic)
        self.book = RedisBook(server.url, f"gateway{next(self._numbers)}", self.account)
        self.granted = 0.0
        self._ticker = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            self.account.tick()

    async def ask(self, amount: float) -> Reply:
        """All that is granted is used at once."""
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def done(reply: Reply, purse: Purse) -> None:
            if reply.granted:
                self.granted += amount
                purse.change([Change("a", LIMIT, burned=amount)])
            answered.set_result(reply)

        self.account.put(Ask([Want("a", LIMIT, amount)]), done)
        return await answered

    def close(self) -> None:
        self._ticker.cancel()
        self.book.close()


async def test_two_gateways_share_one_limit_through_a_loss_of_redis(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        began = time.monotonic()
        gateways = [Gateway(server, 2) for _ in range(2)]
        try:
            await until(lambda: all(gateway.account._epoch for gateway in gateways), 20.0)
            await asyncio.sleep(0.1)
            replies = await asyncio.gather(*(gateway.ask(30.0) for gateway in gateways for _ in range(64)))
            assert sum(gateway.granted for gateway in gateways) >= 490.0  # all, unless one was starved meanwhile
            assert not all(reply.granted for reply in replies)
            server.stop()
            await asyncio.gather(*(gateway.ask(30.0) for gateway in gateways))
            assert [gateway.account.is_alone for gateway in gateways] == [True, True]
            assert [gateway.account.num_times_alone for gateway in gateways] == [1, 1]
            server.start()
            await until(lambda: not any(gateway.account.is_alone for gateway in gateways), AWAY_S + 5.0)
            await asyncio.gather(*(gateway.ask(30.0) for gateway in gateways for _ in range(64)))
            used = sum(gateway.granted for gateway in gateways)
            assert used <= LIMIT * (1.0 + (time.monotonic() - began) / WINDOW_S)
        finally:
            for gateway in gateways:
                gateway.close()


async def test_a_redis_that_hangs_is_as_good_as_lost(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        gateway = Gateway(server, 1)
        try:
            await until(lambda: bool(gateway.account._epoch) and not gateway.account.is_alone, 20.0)
            assert (await gateway.ask(1.0)).granted
            server.freeze()
            assert not (await gateway.ask(500.0)).granted  # alone it begins with nothing
            assert gateway.account.is_alone
            server.wake()
            await until(lambda: not gateway.account.is_alone, AWAY_S + 5.0)
            assert (await gateway.ask(500.0)).granted
        finally:
            gateway.close()
