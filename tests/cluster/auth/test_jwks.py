"""An issuer's keys: when they are fetched, how often, and what happens while the issuer is away."""

import asyncio

import pytest

from cluster.auth.jwks import COOLDOWN_S, HARD_S, SOFT_S, JwksCache
from cluster.errors import KeysUnavailable
from tests.cluster.auth.auth_world import Clock, Publisher


def cache_of(publisher: Publisher, clock: Clock) -> JwksCache[str]:
    """Keys are words here: each is its own name."""
    return JwksCache("issuer", publisher, _read, clock)


def _read(data: bytes) -> dict[str, str]:
    if data == b"garbage":
        raise ValueError("no key set")
    return {name: name.upper() for name in data.decode().split()}


async def settle() -> None:
    """Lets what runs beside come to its end."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_fetched_once_for_all_who_ask_at_the_same_time() -> None:
    publisher, clock = Publisher(b"a b"), Clock()
    cache = cache_of(publisher, clock)
    assert await asyncio.gather(*(cache.key(name) for name in "abab")) == ["A", "B", "A", "B"]
    assert publisher.num_fetches == 1
    clock.now += SOFT_S - 1
    assert await cache.key("a") == "A"
    await settle()
    assert publisher.num_fetches == 1


async def test_old_keys_are_used_while_new_ones_are_fetched() -> None:
    publisher, clock = Publisher(b"a"), Clock()
    cache = cache_of(publisher, clock)
    await cache.key("a")
    publisher.data = b"b"
    clock.now += SOFT_S
    assert await cache.key("a") == "A"  # without waiting
    await settle()
    assert publisher.num_fetches == 2
    assert await cache.key("b") == "B"
    clock.now += COOLDOWN_S
    assert await cache.key("a") is None  # withdrawn


async def test_a_rotation_is_seen_within_the_cooldown() -> None:
    publisher, clock = Publisher(b"a"), Clock()
    cache = cache_of(publisher, clock)
    await cache.key("a")
    publisher.data = b"a b"
    clock.now += COOLDOWN_S - 0.1
    assert await cache.key("b") is None
    clock.now += 0.1
    assert await cache.key("b") == "B"


async def test_random_kids_cause_one_fetch_per_cooldown() -> None:
    publisher, clock = Publisher(b"a"), Clock()
    cache = cache_of(publisher, clock)
    for number in range(50 * 60):  # 50 a second for a minute
        assert await cache.key(f"k{number}") is None
        clock.now += 0.02
    assert publisher.num_fetches <= 60 / COOLDOWN_S + 1
    assert await cache.key("a") == "A"


@pytest.mark.parametrize("trouble", [ConnectionError("down"), TimeoutError(), None], ids=repr)
async def test_the_last_good_keys_stay_for_a_day(trouble: Exception | None) -> None:
    publisher, clock = Publisher(b"a"), Clock()
    cache = cache_of(publisher, clock)
    await cache.key("a")
    publisher.trouble = trouble
    publisher.data = b"garbage"
    for _ in range(20):
        clock.now += (HARD_S - 1) / 20
        assert await cache.key("a") == "A"
        await settle()
    assert publisher.num_fetches == 21 and cache.outcomes == {"ok": 1, "failed": 20}
    clock.now += 1
    with pytest.raises(KeysUnavailable):
        await cache.key("a")
    publisher.trouble, publisher.data = None, b"a"
    clock.now += COOLDOWN_S
    assert await cache.key("a") == "A"


async def test_without_any_keys_it_is_said_and_tried_again() -> None:
    publisher, clock = Publisher(b"a"), Clock()
    publisher.trouble = ConnectionError("down")
    cache = cache_of(publisher, clock)
    for _ in range(3):
        with pytest.raises(KeysUnavailable) as caught:
            await cache.key("a")
        assert caught.value.retry_after_s is not None
    assert publisher.num_fetches == 1
    publisher.trouble = None
    clock.now += COOLDOWN_S
    assert await cache.key("a") == "A"


async def test_who_asked_first_may_leave() -> None:
    """The fetch is everybody's: it does not end with the client that caused it."""
    gate = asyncio.Event()

    async def fetch() -> bytes:
        await gate.wait()
        return b"a"

    cache = JwksCache("issuer", fetch, _read, Clock())
    first, second = asyncio.create_task(cache.key("a")), asyncio.create_task(cache.key("a"))
    await settle()
    first.cancel()
    await settle()
    gate.set()
    assert await second == "A"
