"""An issuer whose keys the tests hold, tokens of any shape signed with them, and an authenticator that takes them."""

import base64
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from joserfc.jwk import ECKey, JWKRegistry, Key, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from cluster.auth.api_keys import ApiKeys
from cluster.auth.authenticator import Authenticator, Issuer
from cluster.auth.config import Family, IssuerConfig
from cluster.auth.credential import Verified
from cluster.auth.jwks import JwksCache
from cluster.auth.tokens import TokenRules, read_token

ISSUER, AUDIENCE, NOW = "https://issuer.example", "manta", 1_800_000_000.0
ALGORITHM = {Family.RS: "RS256", Family.ES: "ES256", Family.EDDSA: "EdDSA", Family.HS: "HS256"}


def key_of(family: Family, kid: str = "k1") -> Key:
    """The issuer's private key of that name; the same each time."""
    return _make_key(family, kid)


@functools.cache
def _make_key(family: Family, kid: str) -> Key:
    parameters: Any = {"kid": kid}
    match family:
        case Family.RS:
            return RSAKey.generate_key(2048, parameters)
        case Family.ES:
            return ECKey.generate_key("P-256", parameters)
        case Family.EDDSA:
            return OKPKey.generate_key("Ed25519", parameters)
        case Family.HS:
            return OctKey.generate_key(256, parameters)


def key_set(*keys: Key) -> bytes:
    """What the issuer publishes; a secret as it is."""
    return json.dumps({"keys": [key.as_dict(private=isinstance(key, OctKey)) for key in keys]}).encode()


def claims(**changed: Any) -> dict[str, Any]:
    """Of a good token; those set to None are left out."""
    good = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "somebody", "jti": "t1", "iat": NOW, "exp": NOW + 600,
        "tenant": "acme", "scope": "openid manta:model:small",
    }  # fmt: skip
    return {name: value for name, value in (good | changed).items() if value is not None}


def base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def sign(header: Mapping[str, Any] | bytes, payload: Mapping[str, Any] | bytes, key: Key, alg: str) -> str:
    """A token of any header and payload, signed all the same."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    message = b".".join(map(base64url, parts))
    return (message + b"." + base64url(JWSRegistry.algorithms[alg].sign(message, key))).decode()


def token(family: Family = Family.EDDSA, header: Mapping[str, Any] | None = None, **changed: Any) -> str:
    """A good token, but for what is changed in its claims or its header."""
    good = {"typ": "JWT", "alg": ALGORITHM[family], "kid": "k1"}
    said = {name: value for name, value in (good | dict(header or {})).items() if value is not None}
    return sign(said, claims(**changed), key_of(family), ALGORITHM[family])


def rules_of(family: Family = Family.EDDSA, **more: Any) -> TokenRules:
    config = IssuerConfig(issuer=ISSUER, audience=AUDIENCE, keys="/nowhere/jwks.json", family=family, **more)
    return TokenRules(config)


def public_key(family: Family) -> Key:
    key = key_of(family)
    return key if isinstance(key, OctKey) else JWKRegistry.import_key(key.as_dict(private=False))


def verify(text: str, family: Family = Family.EDDSA, now: float = NOW, **more: Any) -> Verified:
    """What the rules say of it, given the issuer's public key; BadCredential if it is not to be believed."""
    rules, read = rules_of(family, **more), read_token(text)
    found = rules.check_claims(read, now)
    rules.check_signature(read, public_key(family))
    return found


class Clock:
    """Time as the test makes it."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Publisher:
    """Gives its key set to those who fetch, and counts them; raises `trouble` instead if there is some."""

    def __init__(self, data: bytes) -> None:
        self.data, self.num_fetches = data, 0
        self.trouble: Exception | None = None

    async def __call__(self) -> bytes:
        self.num_fetches += 1
        if self.trouble is not None:
            raise self.trouble
        return self.data


def authenticator(
    publisher: Publisher,
    clock: Clock,
    family: Family = Family.EDDSA,
    api_keys: Callable[[], ApiKeys] = ApiKeys,
    revoked: Callable[[], frozenset[str]] = frozenset[str],
) -> Authenticator:
    rules = rules_of(family)
    issuer = Issuer(rules, JwksCache(ISSUER, publisher, rules.read_keys, clock))
    return Authenticator({ISSUER: issuer}, api_keys, revoked, clock)
