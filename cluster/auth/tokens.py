"""JSON Web Tokens: what they must be, and whom they name. joserfc checks the signature, all other rules are here.

Everything that costs little is checked before the signature. Nothing is fetched: a token never says where its key is.
"""

import logging
import warnings
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import JWKRegistry, Key
from joserfc.util import urlsafe_b64decode
from msgspec import Meta

from cluster.auth.config import Family, IssuerConfig
from cluster.auth.credential import ANY_MODEL, TENANT_PATTERN, BadCredential, Verified
from cluster.auth.principal import Principal

logger = logging.getLogger(__name__)

MAX_TOKEN_BYTES = 8 * 1024
MAX_LIFETIME_S = 24 * 3600.0
LEEWAY_S = 30.0  #: between the issuer's clock and ours
MIN_RSA_BITS, MIN_SECRET_BYTES = 2048, 32
ADMIN_SCOPE, METRICS_SCOPE, MODEL_SCOPE = "manta:admin", "manta:metrics", "manta:model:"
ALGORITHMS = {
    Family.RS: ("RS256", "RS384", "RS512"),
    Family.ES: ("ES256", "ES384", "ES512"),
    Family.EDDSA: ("EdDSA", "Ed25519"),
    Family.HS: ("HS256", "HS384", "HS512"),
}
_KEY_TYPE = {Family.RS: "RSA", Family.ES: "EC", Family.EDDSA: "OKP", Family.HS: "oct"}
_TYPES = ("jwt", "at+jwt", "application/at+jwt")
_Name = Annotated[str, Meta(min_length=1, max_length=256)]

warnings.filterwarnings("ignore", "EdDSA is deprecated", SecurityWarning)  # by that name: the signature is Ed25519's


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a token may say of itself. `jku`, `jwk`, `x5u` and `crit` are refused like all that is not here."""

    alg: str
    kid: _Name
    typ: str = "JWT"
    x5t: str = ""
    x5t_s256: str = msgspec.field(default="", name="x5t#S256")


class _KeySet(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


class ReadToken(msgspec.Struct, frozen=True):
    """A token taken apart, of which nothing is believed yet."""

    raw: bytes
    header: _Header
    claims: Mapping[str, msgspec.Raw]

    def claim(self, name: str, kind: Any) -> Any:
        """BadCredential when it is not there, or not of that kind."""
        try:
            return msgspec.json.decode(self.claims[name], type=kind)
        except (KeyError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise BadCredential(f"bad_{name}" if name in _STANDARD else "bad_claim") from None


_STANDARD = ("iss", "sub", "aud", "exp", "nbf", "iat", "jti")
_decode_header = msgspec.json.Decoder(_Header).decode
_decode_claims = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_token(token: str) -> ReadToken:
    """Take apart; BadCredential when it is no token."""
    if len(token) > MAX_TOKEN_BYTES:
        raise BadCredential("too_large")
    try:
        raw = token.encode("ascii")
        header, payload, _ = raw.split(b".")
        return ReadToken(raw, _decode_header(urlsafe_b64decode(header)), _decode_claims(urlsafe_b64decode(payload)))
    except (ValueError, msgspec.MsgspecError, RecursionError):
        raise BadCredential("malformed") from None


def issuer_of(token: ReadToken) -> str:
    """Who is said to have made it."""
    issuer: str = token.claim("iss", str)
    return issuer


class TokenRules:
    """What the tokens of one issuer must be."""

    def __init__(self, config: IssuerConfig) -> None:
        self._config = config
        self._algorithms = ALGORITHMS[config.family]
        self._registry = jws.JWSRegistry(algorithms=self._algorithms)

    def check_claims(self, token: ReadToken, now: float) -> Verified:
        """Whom it names, if its signature is right; BadCredential when it does not matter whether it is."""
        if token.header.alg not in self._algorithms:
            raise BadCredential("bad_alg")
        if token.header.typ.lower() not in _TYPES:
            raise BadCredential("bad_typ")
        if issuer_of(token) != self._config.issuer:
            raise BadCredential("bad_iss")
        audience: str | list[str] = token.claim("aud", str | list[str])
        if self._config.audience not in ([audience] if isinstance(audience, str) else audience):
            raise BadCredential("bad_aud")
        expires_at = self._check_times(token, now)
        ids = (token.header.kid, token.claim("jti", _Name)) if "jti" in token.claims else (token.header.kid,)
        return Verified(self._principal(token), expires_at, ids)

    def check_signature(self, token: ReadToken, key: Key) -> None:
        """By that key of the issuer's; BadCredential when it is another's."""
        try:
            jws.deserialize_compact(token.raw, key, registry=self._registry)
        except (JoseError, ValueError, TypeError, RecursionError):
            raise BadCredential("bad_signature") from None

    def read_keys(self, data: bytes) -> dict[str, Key]:
        """The usable keys of a key set by their `kid`; ValueError when there is none. Others' kinds are passed by."""
        found: dict[str, Key] = {}
        for entry in msgspec.json.decode(data, type=_KeySet).keys:
            if self._is_for_us(entry):
                try:
                    found.setdefault(entry["kid"], _import(entry))
                except (JoseError, ValueError, TypeError, KeyError) as error:
                    logger.warning("issuer %s has an unusable key %r: %s", self._config.issuer, entry["kid"], error)
        if not found:
            raise ValueError(f"no usable key with a `kid` for {self._config.family.value} signatures in the key set")
        return found

    def _check_times(self, token: ReadToken, now: float) -> float:
        expires_at: float = token.claim("exp", float)
        begins_at: float = token.claim("nbf", float) if "nbf" in token.claims else now
        issued_at: float = token.claim("iat", float) if "iat" in token.claims else now + LEEWAY_S
        if expires_at + LEEWAY_S <= now:
            raise BadCredential("expired")
        if max(begins_at, issued_at) > now + LEEWAY_S:
            raise BadCredential("not_yet_valid")
        if expires_at - issued_at > MAX_LIFETIME_S:
            raise BadCredential("lives_too_long")
        return expires_at

    def _principal(self, token: ReadToken) -> Principal:
        scopes: list[str] | str = []
        if self._config.scope_claim in token.claims:
            scopes = token.claim(self._config.scope_claim, str | list[str])
        granted = frozenset(scopes.split() if isinstance(scopes, str) else scopes)
        models = frozenset(scope.removeprefix(MODEL_SCOPE) for scope in granted if scope.startswith(MODEL_SCOPE))
        return Principal(
            tenant=token.claim(self._config.tenant_claim, Annotated[str, Meta(pattern=TENANT_PATTERN)]),
            models=None if ANY_MODEL in models else models,
            is_admin=ADMIN_SCOPE in granted,
            reads_metrics=METRICS_SCOPE in granted,
            key_id=token.claim("sub", _Name),
        )

    def _is_for_us(self, entry: Mapping[str, Any]) -> bool:
        return (
            isinstance(entry.get("kid"), str)
            and entry.get("kty") == _KEY_TYPE[self._config.family]
            and entry.get("use", "sig") == "sig"
            and entry.get("alg", self._algorithms[0]) in self._algorithms
        )


def _import(entry: Mapping[str, Any]) -> Key:
    """ValueError, TypeError, KeyError or JoseError for a key that is weak or none."""
    key = JWKRegistry.import_key(dict(entry))
    public: Any = key.get_op_key("verify")
    if isinstance(public, RSAPublicKey) and public.key_size < MIN_RSA_BITS:
        raise ValueError(f"it has {public.key_size} bits; at least {MIN_RSA_BITS} are needed")
    if isinstance(public, bytes) and len(public) < MIN_SECRET_BYTES:
        raise ValueError(f"it is shorter than {MIN_SECRET_BYTES} bytes")
    return key
