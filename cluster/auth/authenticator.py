"""Authenticator: from the `Authorization` of a request, by whatever protocol it came, to who asks."""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from joserfc.jwk import Key

from cluster.auth.api_keys import PREFIX, ApiKeys
from cluster.auth.credential import BadCredential, Verified
from cluster.auth.jwks import JwksCache
from cluster.auth.principal import Principal
from cluster.auth.tokens import TokenRules, issuer_of, read_token
from cluster.errors import Unauthorized

logger = logging.getLogger(__name__)

CACHED_TOKENS, CACHED_S = 10_000, 30.0
_SCHEME = "bearer"


@dataclass(frozen=True)
class Issuer:
    """Whose tokens are taken."""

    rules: TokenRules
    keys: JwksCache[Key]


class Authenticator:
    """Takes API keys, and tokens of these issuers (by their `iss`).

    `api_keys` and `revoked` are asked each time, `now` is Unix time. Whatever is wrong with a credential, the client is
    told the same; `refusals` counts the reasons.
    """

    def __init__(
        self,
        issuers: Mapping[str, Issuer],
        api_keys: Callable[[], ApiKeys],
        revoked: Callable[[], frozenset[str]],
        now: Callable[[], float],
    ) -> None:
        self._issuers, self._api_keys, self._revoked, self._now = issuers, api_keys, revoked, now
        self._verified = _VerifiedTokens()
        self._one_at_a_time = asyncio.Lock()
        self.refusals: Counter[str] = Counter()

    @property
    def key_fetches(self) -> Counter[str]:
        """Of all issuers' keys, by their outcome."""
        return sum((issuer.keys.outcomes for issuer in self._issuers.values()), Counter())

    async def __call__(self, authorization: str | None) -> Principal:
        """Who asks; Unauthorized, or KeysUnavailable when an issuer's keys cannot be had."""
        try:
            found = await self._verify(authorization)
            if not self._revoked().isdisjoint(found.ids):
                raise BadCredential("revoked")
        except BadCredential as error:
            self.refusals[error.reason] += 1
            logger.info("a credential is refused: %s", error.reason)
            raise Unauthorized from None
        return found.principal

    async def _verify(self, authorization: str | None) -> Verified:
        if authorization is None:
            raise BadCredential("missing")
        scheme, _, credential = authorization.strip().partition(" ")
        if scheme.lower() != _SCHEME:
            raise BadCredential("bad_scheme")
        if credential.startswith(PREFIX):
            return self._api_keys().verify(credential, self._now())
        digest = sha256(credential.encode("latin-1", "replace")).digest()
        return self._verified.get(digest, self._now()) or await self._verify_token(credential, digest)

    async def _verify_token(self, credential: str, digest: bytes) -> Verified:
        token = read_token(credential)
        issuer = self._issuers.get(issuer_of(token))
        if issuer is None:
            raise BadCredential("bad_iss")
        found = issuer.rules.check_claims(token, self._now())
        key = await issuer.keys.key(token.header.kid)
        if key is None:
            raise BadCredential("unknown_kid")
        async with self._one_at_a_time:  # and the loop turns between two: a flood of tokens delays no stream by more
            issuer.rules.check_signature(token, key)
            await asyncio.sleep(0)
        self._verified.put(digest, found, self._now())
        return found


class _VerifiedTokens:
    """Tokens whose signature was right a moment ago, by their SHA-256; the least used go first."""

    def __init__(self) -> None:
        self._found: OrderedDict[bytes, tuple[float, float, Verified]] = OrderedDict()

    def get(self, digest: bytes, now: float) -> Verified | None:
        """None as well when the clock was turned back since."""
        entry = self._found.get(digest)
        if entry is None or not entry[0] <= now < entry[1]:
            return None
        self._found.move_to_end(digest)
        return entry[2]

    def put(self, digest: bytes, found: Verified, now: float) -> None:
        """For 30 s, or until it expires."""
        self._found[digest] = (now, min(found.expires_at, now + CACHED_S), found)
        self._found.move_to_end(digest)
        if len(self._found) > CACHED_TOKENS:
            self._found.popitem(last=False)
