"""Which tokens are believed, and whom they name."""

import json
from typing import Any

import pytest
from joserfc.jwk import ECKey, OctKey, RSAKey

from cluster.auth.config import Family
from cluster.auth.credential import BadCredential
from cluster.auth.tokens import MAX_TOKEN_BYTES
from tests.cluster.auth.auth_world import (
    ISSUER,
    NOW,
    claims,
    key_of,
    key_set,
    public_key,
    rules_of,
    sign,
    token,
    verify,
)

DAY = 24 * 3600.0


@pytest.mark.parametrize("family", Family)
def test_a_good_token_names_tenant_models_and_subject(family: Family) -> None:
    found = verify(token(family), family)
    who = found.principal
    assert (who.tenant, who.models, who.is_admin, who.key_id) == ("acme", {"small"}, False, "somebody")
    assert (found.expires_at, found.ids) == (NOW + 600, ("k1", "t1"))


@pytest.mark.parametrize(
    ("scope", "models", "is_admin"),
    [
        (None, frozenset(), False),
        ("", frozenset(), False),
        ("admin model:small small", frozenset(), False),
        ("manta:model:*", None, False),
        ("manta:model:org/a manta:model:b manta:admin", {"org/a", "b"}, True),
        (["manta:model:a", "manta:model:b"], {"a", "b"}, False),
        (["manta:admin manta:model:*"], frozenset(), False),
    ],
)
def test_scopes(scope: Any, models: Any, is_admin: bool) -> None:
    found = verify(token(scope=scope)).principal
    assert (found.models, found.is_admin) == (models, is_admin)


@pytest.mark.parametrize(
    ("scope", "reads"), [("manta:metrics", True), ("manta:model:*", False), ("manta:admin", False)]
)
def test_the_scope_of_a_reader_of_metrics(scope: str, reads: bool) -> None:
    assert verify(token(scope=scope)).principal.reads_metrics is reads


def test_claims_of_other_names() -> None:
    found = verify(
        token(tenant=None, scope=None, **{"https://x/org": "o1", "roles": ["manta:admin"]}),
        tenant_claim="https://x/org",
        scope_claim="roles",
    )
    assert (found.principal.tenant, found.principal.is_admin) == ("o1", True)


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": NOW - 29},
        {"nbf": NOW + 29},
        {"iat": NOW + 29},
        {"iat": None, "exp": NOW + DAY + 29},
        {"iat": NOW - 3600, "exp": NOW - 3600 + DAY},
        {"exp": NOW + 0.5},
        {"aud": ["other", "manta"]},
        {"jti": None},
        {"iat": None},
        {"extra": {"roles": [["a"]]}},
    ],
)
def test_taken_claims(changed: dict[str, Any]) -> None:
    assert verify(token(**changed)).principal.tenant == "acme"


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": NOW - 31},
        {"nbf": NOW + 31},
        {"iat": NOW + 31},
        {"exp": None},
        {"exp": NOW + DAY + 1},
        {"iat": None, "exp": NOW + DAY + 31},
        {"iat": NOW - DAY, "exp": NOW + 60},
        {"exp": NOW + 300 * 365 * DAY},
        {"exp": str(NOW + 600)},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"exp": [NOW + 600]},
        {"exp": True},
        {"nbf": "now"},
        {"iat": {}},
        {"iss": "https://issuer.example/"},
        {"iss": None},
        {"iss": [ISSUER]},
        {"aud": None},
        {"aud": "other"},
        {"aud": []},
        {"aud": ["other", 1]},
        {"aud": {"manta": 1}},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "x" * 300},
        {"jti": 7},
        {"tenant": None},
        {"tenant": ""},
        {"tenant": 7},
        {"tenant": "a" * 65},
        {"tenant": "acme\n"},
        {"tenant": "../acme"},
        {"tenant": ["acme"]},
        {"tenant": "ac\u00adme"},
        {"scope": 7},
        {"scope": ["manta:admin", 7]},
        {"scope": {"manta:admin": True}},
    ],
    ids=str,
)
def test_refused_claims(changed: dict[str, Any]) -> None:
    with pytest.raises(BadCredential):
        verify(token(**changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"alg": None},
        {"alg": "none"},
        {"alg": "None"},
        {"alg": "HS256"},
        {"alg": "RS256"},
        {"alg": ["EdDSA"]},
        {"alg": "eddsa"},
        {"kid": None},
        {"kid": ""},
        {"kid": 1},
        {"typ": "dpop+jwt"},
        {"typ": "logout+jwt"},
        {"typ": None, "cty": "JWT"},
        {"jku": "https://evil.example/jwks.json"},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}},
        {"x5u": "https://evil.example/cert.pem"},
        {"x5c": ["MIIB"]},
        {"crit": ["exp"]},
        {"crit": ["b64"], "b64": True},
        {"crit": []},
        {"b64": False},
        {"zip": "DEF"},
        {"enc": "A256GCM"},
        {"anything": 1},
    ],
    ids=str,
)
def test_refused_headers(changed: dict[str, Any]) -> None:
    with pytest.raises(BadCredential):
        verify(token(header=changed))


@pytest.mark.parametrize("changed", [{"typ": None}, {"typ": "at+jwt"}, {"typ": "jwt"}, {"x5t": "a", "x5t#S256": "b"}])
def test_taken_headers(changed: dict[str, Any]) -> None:
    assert verify(token(header=changed)).principal.tenant == "acme"


@pytest.mark.parametrize("family", Family)
def test_a_signature_must_be_right(family: Family) -> None:
    message, _, signature = token(family).rpartition(".")
    other = token(family, sub="somebody else").rpartition(".")[2]
    for wrong in ("", "AAAA", signature[:-4], other, signature + "AAAA", signature + "=", f"{signature}.{signature}"):
        with pytest.raises(BadCredential):
            verify(f"{message}.{wrong}", family)


def test_a_public_key_is_no_secret() -> None:
    """The classical confusion of algorithms: a token signed with the published key as if it were an HMAC secret."""
    public = public_key(Family.RS)
    assert isinstance(public, RSAKey)
    for secret in (public.as_pem(), public.as_der(), json.dumps(public.as_dict()).encode()):
        forged = OctKey(secret, secret, None)
        header = {"alg": "HS256", "kid": "k1"}
        with pytest.raises(BadCredential, match="bad_alg"):
            verify(sign(header, claims(), forged, "HS256"), Family.RS)


def test_an_algorithm_of_the_family_that_does_not_fit_the_key() -> None:
    with pytest.raises(BadCredential, match="bad_signature"):
        verify(sign({"alg": "ES384", "kid": "k1"}, claims(), ECKey.generate_key("P-384"), "ES384"), Family.ES)


@pytest.mark.parametrize("text", ["", ".", "..", "a.b", "a.b.c.d", "e30.e30.", "e30.e30.AA", "\x00", "é.é.é", "=.=.="])
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(BadCredential):
        verify(text)


@pytest.mark.parametrize(
    "deep", [b'{"a":' * 1100, b"[" * 5500, b'{"exp":' + b"[" * 5500], ids=["objects", "lists", "exp"]
)
def test_deep_nesting_is_refused_without_recursion(deep: bytes) -> None:
    key, header = key_of(Family.EDDSA), {"alg": "EdDSA", "kid": "k1"}
    for raw in (sign(deep, claims(), key, "EdDSA"), sign(header, deep, key, "EdDSA")):
        assert len(raw) <= MAX_TOKEN_BYTES
        with pytest.raises(BadCredential):
            verify(raw)


def test_size_is_bounded() -> None:
    assert verify(token(filler="x" * 5800)).principal.tenant == "acme"
    with pytest.raises(BadCredential, match="too_large"):
        verify(token(filler="x" * 6000))


def test_nothing_is_believed_before_the_signature() -> None:
    """A claim that is repeated, or a payload that is none, is not read in two ways."""
    key, header = key_of(Family.EDDSA), {"alg": "EdDSA", "kid": "k1"}
    twice = json.dumps(claims()).encode()[:-1] + b',"tenant":"other"}'
    assert verify(sign(header, twice, key, "EdDSA")).principal.tenant == "other"
    for payload in (b"", b"[]", b'"x"', b"{", b"\xff", b"null", b'{"exp":1}{}'):
        with pytest.raises(BadCredential):
            verify(sign(header, payload, key, "EdDSA"))


def test_key_sets_give_the_keys_of_the_family_only() -> None:
    keys = [key_of(family, f"k-{family.value}") for family in Family]
    for family in Family:
        assert list(rules_of(family).read_keys(key_set(*keys))) == [f"k-{family.value}"]


@pytest.mark.parametrize(
    "entry",
    [
        {"kid": None},
        {"kid": 7},
        {"use": "enc"},
        {"alg": "PS256"},
        {"n": "AQAB"},
        {"n": None},
        {"e": "%%"},
        {"kty": "EC"},
    ],
    ids=str,
)
def test_unusable_keys_are_passed_by(entry: dict[str, Any]) -> None:
    good = key_of(Family.RS).as_dict(private=False)
    bad = {name: value for name, value in (good | entry).items() if value is not None}
    with pytest.raises(ValueError, match="no usable key"):
        rules_of(Family.RS).read_keys(json.dumps({"keys": [bad]}).encode())
    found = rules_of(Family.RS).read_keys(json.dumps({"keys": [bad, good | {"kid": "good"}]}).encode())
    assert "good" in found and len(found) == 1


def test_weak_keys_are_passed_by() -> None:
    weak: Any = {"kid": "weak"}
    for family, key in ((Family.RS, RSAKey.generate_key(1024, weak)), (Family.HS, OctKey.generate_key(128, weak))):
        with pytest.raises(ValueError, match="no usable key"):
            rules_of(family).read_keys(key_set(key))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"keys":{}}', b'{"keys":[]}', b'{"keys":[1]}', b"\xff"])
def test_what_is_no_key_set(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        rules_of().read_keys(data)
