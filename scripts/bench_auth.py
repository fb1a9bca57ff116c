"""What it costs a gateway to ask who asks, in microseconds per credential.

One process, no sockets: the `Authenticator` of a gateway, with keys of each kind. `first`: a token that was not seen
before, so its signature is checked; `again`: one checked in the last 30 s; `refused`: one whose signature is wrong.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey

from cluster.auth.api_keys import ApiKeys, make_key
from cluster.auth.authenticator import Authenticator, Issuer
from cluster.auth.config import Family, IssuerConfig
from cluster.auth.jwks import JwksCache
from cluster.auth.tokens import TokenRules
from cluster.errors import Unauthorized

KEYS: dict[str, tuple[Family, Key]] = {
    "RS256": (Family.RS, RSAKey.generate_key(2048, auto_kid=True)),
    "ES256": (Family.ES, ECKey.generate_key("P-256", auto_kid=True)),
    "Ed25519": (Family.EDDSA, OKPKey.generate_key("Ed25519", auto_kid=True)),
    "HS256": (Family.HS, OctKey.generate_key(256, auto_kid=True)),
}
KEY, KEPT = make_key("acme", ["demo"], False, None)


def authenticator(family: Family, key: Key) -> Authenticator:
    rules = TokenRules(IssuerConfig(issuer="i", audience="manta", keys="/unread", family=family))

    async def fetch() -> bytes:
        return b""

    issuer = Issuer(rules, JwksCache("i", fetch, lambda _: {str(key.kid): key}, time.monotonic))
    return Authenticator({"i": issuer}, lambda: ApiKeys([KEPT]), frozenset[str], time.time)


def token(algorithm: str, key: Key, number: int) -> str:
    now = int(time.time())
    claims = {
        "iss": "i", "aud": "manta", "sub": "somebody", "jti": str(number), "iat": now, "exp": now + 3600,
        "tenant": "acme", "scope": "openid profile manta:model:demo",
    }  # fmt: skip
    return "Bearer " + jwt.encode({"alg": algorithm, "kid": key.kid}, claims, key, algorithms=[algorithm])


async def measure(asked: Authenticator, credentials: Sequence[str]) -> list[float]:
    """Microseconds of each, sorted."""
    spent = []
    for credential in credentials:
        began = time.perf_counter()
        with suppress(Unauthorized):
            await asked(credential)
        spent.append(1e6 * (time.perf_counter() - began))
    return sorted(spent)


def show(name: str, how: str, spent: list[float]) -> None:
    p50, p99 = spent[len(spent) // 2], spent[int(0.99 * len(spent))]
    print(f"{name:<8} {how:<8} p50 {p50:7.1f} us   p99 {p99:7.1f} us")


async def measure_all(count: int) -> None:
    for name, (family, key) in KEYS.items():
        asked = authenticator(family, key)
        texts = [token(name, key, number) for number in range(count)]
        await asked(token(name, key, -1))  # fetches the keys
        show(name, "first", await measure(asked, texts))
        show(name, "again", await measure(asked, texts))
        show(name, "refused", await measure(asked, [f"{text[:-6]}AAAAAA" for text in texts]))
    show("API key", "", await measure(asked, [f"Bearer {KEY}"] * count))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=2000, help="credentials of each kind (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    asyncio.run(measure_all(args.count))
    return 0
