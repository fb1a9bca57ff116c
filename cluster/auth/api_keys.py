"""API keys: made once and shown once; the file keeps their SHA-256 alone."""

import hmac
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.auth.credential import ANY_MODEL, TENANT_PATTERN, BadCredential, Verified
from cluster.auth.principal import Principal

PREFIX = "manta_"
_NOBODY = "0" * 64  #: the hash that a key of an unknown id is compared with, to take as long


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key as the file has it."""

    id: Annotated[str, Meta(pattern=r"\A[0-9a-f]{8,32}\Z")]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]  #: of the whole key
    tenant: Annotated[str, Meta(pattern=TENANT_PATTERN)]
    models: Annotated[Sequence[str], Meta(min_length=1)] = (ANY_MODEL,)
    admin: bool = False
    metrics: bool = False  #: it reads the metrics, and is good for nothing else
    expires: Annotated[datetime, Meta(tz=True)] | None = None
    revoked: bool = False


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    keys: list[ApiKey]


def make_key(
    tenant: str, models: Sequence[str], admin: bool, expires: datetime | None, metrics: bool = False
) -> tuple[str, ApiKey]:
    """A new key in clear, and what is kept of it."""
    key_id = secrets.token_hex(4)
    key = f"{PREFIX}{key_id}_{secrets.token_hex(24)}"
    digest = sha256(key.encode()).hexdigest()
    kept = ApiKey(id=key_id, sha256=digest, tenant=tenant, models=models, admin=admin, metrics=metrics, expires=expires)
    return key, kept


def read_key_file(data: bytes) -> KeyFile:
    """ValueError says what is wrong with it."""
    found = msgspec.json.decode(data, type=KeyFile)
    ids = [key.id for key in found.keys]
    if len(set(ids)) < len(ids):
        raise ValueError("two keys have the same id")
    return found


def write_key_file(found: KeyFile) -> bytes:
    """For people, too: one line a field."""
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


class ApiKeys:
    """The keys of a file, by id."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._of_id = {key.id: key for key in keys}

    @classmethod
    def read(cls, data: bytes) -> "ApiKeys":
        """From the file's content; ValueError when it is none."""
        return cls(read_key_file(data).keys)

    def verify(self, key: str, now: float) -> Verified:
        """Who has this key; BadCredential when nobody has."""
        found = self._of_id.get(key.removeprefix(PREFIX).partition("_")[0])
        digest = sha256(key.encode()).hexdigest()
        is_right = hmac.compare_digest(digest, _NOBODY if found is None else found.sha256)
        if found is None or not is_right:
            raise BadCredential("unknown_key")
        if found.revoked:
            raise BadCredential("revoked")
        expires_at = float("inf") if found.expires is None else found.expires.timestamp()
        if expires_at <= now:
            raise BadCredential("expired")
        models = None if ANY_MODEL in found.models else frozenset(found.models)
        principal = Principal(
            tenant=found.tenant,
            models=frozenset() if found.metrics else models,
            is_admin=found.admin and not found.metrics,
            reads_metrics=found.metrics,
            key_id=found.id,
        )
        return Verified(principal, expires_at, (found.id,))
