"""Who is let in by what is said in `Authorization`, and what is remembered of it."""

import asyncio

import pytest

from cluster.auth import authenticator as module
from cluster.auth.api_keys import ApiKeys, make_key
from cluster.auth.authenticator import CACHED_S, Authenticator
from cluster.auth.config import Family
from cluster.auth.tokens import TokenRules
from cluster.errors import KeysUnavailable, Unauthorized
from tests.cluster.auth.auth_world import NOW, Clock, Publisher, authenticator, key_of, key_set, token

KEY, KEPT = make_key("keyed", ["small"], False, None)


@pytest.fixture
def publisher() -> Publisher:
    return Publisher(key_set(key_of(Family.EDDSA)))


@pytest.fixture
def num_checked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many signatures have been checked, as a list of ones."""
    checked: list[int] = []
    check = TokenRules.check_signature

    def counted(*args: object) -> None:
        checked.append(1)
        check(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(TokenRules, "check_signature", counted)
    return checked


async def reason(asked: Authenticator, authorization: str | None) -> str:
    """Why it is refused; the client is told nothing of it."""
    asked.refusals.clear()
    with pytest.raises(Unauthorized) as caught:
        await asked(authorization)
    assert caught.value.body() == Unauthorized().body() and str(caught.value) == str(Unauthorized())
    return next(iter(asked.refusals))


async def test_schemes(publisher: Publisher) -> None:
    asked = authenticator(publisher, Clock(), api_keys=lambda: ApiKeys([KEPT]))
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert (await asked(f"{scheme} {KEY}")).tenant == "keyed"
        assert (await asked(f"{scheme} {token()}")).tenant == "acme"
    assert await reason(asked, None) == "missing"
    for wrong in ("", KEY, f"Basic {KEY}", f"Token {KEY}", f"Bearer{KEY}", f"Bearer,{KEY}"):
        assert await reason(asked, wrong) == "bad_scheme"
    for wrong in ("Bearer", "Bearer ", f"Bearer  {KEY}", f"Bearer {KEY} {KEY}", f'Bearer "{KEY}"'):
        await reason(asked, wrong)


async def test_unknown_issuers_and_keys(publisher: Publisher) -> None:
    asked = authenticator(publisher, Clock())
    assert await reason(asked, f"Bearer {token(iss='https://other.example')}") == "bad_iss"
    assert publisher.num_fetches == 0
    assert await reason(asked, f"Bearer {token(header={'kid': 'k2'})}") == "unknown_kid"
    assert await reason(asked, f"Bearer {KEY}") == "unknown_key"


async def test_hopeless_tokens_cost_no_fetch_and_no_signature(publisher: Publisher, num_checked: list[int]) -> None:
    asked = authenticator(publisher, Clock())
    for text in (token(exp=NOW - 60), token(aud="x"), token(header={"alg": "none"}), token(tenant=None), "a.b.c"):
        await reason(asked, f"Bearer {text}")
    assert publisher.num_fetches == 0 and num_checked == []


async def test_an_issuer_that_is_away_is_not_the_clients_fault(publisher: Publisher) -> None:
    publisher.trouble = ConnectionError("down")
    asked = authenticator(publisher, Clock(), api_keys=lambda: ApiKeys([KEPT]))
    with pytest.raises(KeysUnavailable):
        await asked(f"Bearer {token()}")
    assert (await asked(f"Bearer {KEY}")).tenant == "keyed"


async def test_a_token_is_checked_again_after_half_a_minute(publisher: Publisher, num_checked: list[int]) -> None:
    clock = Clock()
    asked, text = authenticator(publisher, clock), f"Bearer {token()}"
    for _ in range(3):
        await asked(text)
    assert len(num_checked) == 1
    clock.now += CACHED_S
    await asked(text)
    assert len(num_checked) == 2
    clock.now -= 3600  # the clock is set right: what was checked in the future counts for nothing
    await asked(f"Bearer {token(iat=None, exp=NOW)}")
    assert len(num_checked) == 3


async def test_a_remembered_token_expires(publisher: Publisher) -> None:
    clock = Clock()
    asked, text = authenticator(publisher, clock), f"Bearer {token(exp=NOW + 10)}"
    for elapsed_s in (0, 9, 39):
        clock.now = NOW + elapsed_s
        await asked(text)
    clock.now = NOW + 40
    assert await reason(asked, text) == "expired"


async def test_revocation_counts_at_once_for_what_is_remembered_too(publisher: Publisher) -> None:
    revoked: set[str] = set()
    asked = authenticator(publisher, Clock(), api_keys=lambda: ApiKeys([KEPT]), revoked=lambda: frozenset(revoked))
    for id_, text in (("t1", token()), ("k1", token()), (KEPT.id, KEY)):
        await asked(f"Bearer {text}")
        revoked.add(id_)
        assert await reason(asked, f"Bearer {text}") == "revoked"
        revoked.clear()
        await asked(f"Bearer {text}")


async def test_only_so_many_tokens_are_remembered(
    publisher: Publisher, num_checked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CACHED_TOKENS", 2)
    asked = authenticator(publisher, Clock())
    first, second, third = (f"Bearer {token(jti=name)}" for name in "abc")
    for text in (first, second, first, third, first):
        await asked(text)
    assert len(num_checked) == 3
    await asked(second)
    assert len(num_checked) == 4


async def test_between_two_signatures_the_loop_turns(publisher: Publisher, num_checked: list[int]) -> None:
    """A flood of tokens delays others by one signature at a time."""
    asked = authenticator(publisher, Clock())
    await asked(f"Bearer {token()}")
    flood = [asyncio.create_task(asked(f"Bearer {token(jti=f'j{number}')}")) for number in range(20)]
    seen = []
    while not all(task.done() for task in flood):
        before = len(num_checked)
        await asyncio.sleep(0)
        seen.append(len(num_checked) - before)
    assert sum(seen) == 20 and max(seen) == 1
    assert {(await task).tenant for task in flood} == {"acme"}
