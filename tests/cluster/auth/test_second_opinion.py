"""Another library looks at the same tokens, the house's own rules are written down a second time: all must agree."""

import asyncio
import base64
import binascii
import json
import re
import time
from typing import Any

import jwt
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from cluster.auth.config import Family
from cluster.auth.credential import BadCredential
from cluster.errors import Unauthorized
from tests.cluster.auth.auth_world import (
    ALGORITHM,
    AUDIENCE,
    ISSUER,
    Clock,
    Publisher,
    authenticator,
    claims,
    key_of,
    key_set,
    public_key,
    sign,
    verify,
)

DAY = 24 * 3600
LISTS = {Family.RS: ["RS256", "RS384", "RS512"], Family.ES: ["ES256", "ES384", "ES512"], Family.EDDSA: ["EdDSA"]}
LISTS[Family.HS] = ["HS256", "HS384", "HS512"]
BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=+/."

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(max_size=20)
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
#: Seconds from now, none of them within a few of a limit: the other library looks at its own clock.
moments = st.sampled_from(
    [-2 * DAY, -DAY - 300, -DAY + 300, -600, -40, -20, 0, 20, 40, 600, DAY - 600, DAY + 300, 9 * DAY]
)
headers = st.dictionaries(
    st.sampled_from(["alg", "kid", "typ", "cty", "jku", "jwk", "x5u", "x5t", "crit", "b64", "other"]),
    st.sampled_from(["none", "RS256", "ES256", "ES384", "EdDSA", "HS256", "PS256", "k1", "k2", "JWT", "at+jwt"])
    | st.sampled_from([["exp"], ["b64"], True, False])
    | values,
    max_size=2,
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "exp": moments,
        "nbf": moments,
        "iat": moments,
        "aud": st.sampled_from([AUDIENCE, [AUDIENCE], ["x", AUDIENCE], "x", []]),
        "scope": st.sampled_from(["manta:admin", ["manta:admin"], ""]),
    },
)
oddities = st.dictionaries(
    st.sampled_from(["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "tenant", "scope", "more"]), values, max_size=2
)


@st.composite
def tokens(draw: st.DrawFn) -> tuple[Family, str]:
    """Good but for at most two of: the header, the claims, the key, the text itself."""
    family, now = draw(st.sampled_from(Family)), int(time.time())
    touched = draw(st.sets(st.sampled_from(["header", "changes", "oddities", "key", "text"]), max_size=2))
    header: dict[str, Any] = {"alg": ALGORITHM[family], "kid": "k1"}
    if "header" in touched:
        header |= draw(headers)
    said = claims(iat=now, exp=now + 600)
    if "changes" in touched:
        said |= {name: now + value if isinstance(value, int) else value for name, value in draw(changes).items()}
    if "oddities" in touched:
        said |= draw(oddities)
    signer, kid = draw(st.tuples(st.sampled_from(Family), st.just("k2"))) if "key" in touched else (family, "k1")
    text = sign(header, said, key_of(signer, kid), ALGORITHM[signer])
    if "text" in touched:
        place = draw(st.integers(0, len(text) - 1))
        text = text[:place] + draw(st.sampled_from(["", *BASE64])) + text[place + draw(st.integers(0, 1)) :]
    return family, text


def other_library_takes(text: str, family: Family) -> bool:
    options: Any = {"require": ["iss", "sub", "aud", "exp"]}
    key = jwt.PyJWK(public_key(family).as_dict(private=family is Family.HS), ALGORITHM[family]).key
    try:
        jwt.decode(text, key, LISTS[family], options, audience=AUDIENCE, issuer=ISSUER, leeway=30)
    except (jwt.PyJWTError, OverflowError):  # the second of an `exp` that is infinite
        return False
    return True


def house_rules_take(text: str) -> bool:
    """What the house asks beyond the other library's rules."""
    try:
        parts = text.split(".")
        if any(base64.urlsafe_b64encode(_decode(part)).decode().rstrip("=") != part for part in parts):
            return False  # the same bytes in another spelling
        header, said = (json.loads(_decode(part), parse_constant=_refuse) for part in parts[:2])
    except (ValueError, binascii.Error):
        return False
    times = {name: said[name] for name in ("exp", "nbf", "iat") if name in said}
    scope = said.get("scope", "")
    return (
        header.keys() <= {"alg", "kid", "typ", "x5t"}
        and header.get("kid") not in (None, "")
        and isinstance(header.get("x5t", ""), str)
        and str(header.get("typ", "JWT")).lower() in ("jwt", "at+jwt")
        and all(isinstance(moment, int | float) and not isinstance(moment, bool) for moment in times.values())
        and said["exp"] - said.get("iat", time.time()) <= DAY
        and all(isinstance(said.get(name, "x"), str) and said.get(name, "x") for name in ("sub", "jti"))
        and isinstance(said.get("tenant"), str)
        and re.fullmatch(r"[A-Za-z0-9._-]{1,64}", said["tenant"]) is not None
        and (isinstance(scope, str) or (isinstance(scope, list) and all(isinstance(word, str) for word in scope)))
    )


def _decode(part: str) -> bytes:
    return base64.b64decode(part + "=" * (-len(part) % 4), b"-_", validate=True)


def _refuse(name: str) -> None:
    raise ValueError(name)


def house_takes(text: str, family: Family) -> bool:
    try:
        verify(text, family, time.time())
    except BadCredential:
        return False
    return True


@settings(max_examples=200, deadline=None)
@given(tokens())
def test_two_libraries_agree(drawn: tuple[Family, str]) -> None:
    family, text = drawn
    assert house_takes(text, family) == (other_library_takes(text, family) and house_rules_take(text))


@pytest.mark.parametrize("family", Family)
def test_good_ones_are_among_those_drawn(family: Family) -> None:
    """Were all of them refused, agreement would mean nothing."""
    found, text = find(tokens(), lambda drawn: drawn[0] is family and house_takes(drawn[1], family))
    assert other_library_takes(text, found) and house_rules_take(text)


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=200)
    | st.text(BASE64, max_size=300).map("Bearer {}".format)
    | st.lists(st.binary(max_size=60), min_size=3, max_size=3).map(
        lambda parts: "Bearer " + ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    )
    | tokens().map(lambda drawn: f"bearer {drawn[1]}x")
    | st.text(max_size=80).map("Bearer manta_{}".format)
)
def test_any_authorization_is_answered_with_401(text: str) -> None:
    asked = authenticator(Publisher(key_set(key_of(Family.EDDSA))), Clock(time.time()))
    with pytest.raises(Unauthorized):
        asyncio.run(_ask(asked, text))


async def _ask(asked: Any, text: str) -> None:
    await asked(text)
