"""What an operator says about who may ask: issuers of tokens, the file of API keys, the list of what is revoked."""

import ipaddress
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from engine.errors import ConfigError


class Family(StrEnum):
    """Algorithms that share a kind of key; an issuer signs with one of them."""

    RS = "RS"
    ES = "ES"
    EDDSA = "EdDSA"
    HS = "HS"


class IssuerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One issuer of JSON Web Tokens."""

    issuer: Annotated[str, Meta(min_length=1, description="What `iss` must be, to the letter.")]
    audience: Annotated[str, Meta(min_length=1, description="What `aud` must be, or must hold.")]
    keys: Annotated[
        str,
        Meta(description="Its JSON Web Key Set: an `https` URL, or the absolute path of a file. With `HS` a file."),
    ]
    family: Annotated[
        Family,
        Meta(
            description="Its signatures: RS256, RS384 and RS512, or the same of `ES` or `HS`, or `EdDSA`. Never of two."
        ),
    ] = Family.RS
    tenant_claim: Annotated[str, Meta(min_length=1, description="The claim that names the tenant.")] = "tenant"
    scope_claim: Annotated[
        str,
        Meta(
            min_length=1,
            description="The claim with what is allowed, a list or words in a text: `manta:model:NAME`, "
            "`manta:model:*`, `manta:metrics`, `manta:admin`.",
        ),
    ] = "scope"

    def __post_init__(self) -> None:
        if "://" in self.keys:
            url = urlsplit(self.keys)
            if self.family is Family.HS:
                raise ConfigError("auth.issuers[].keys", self.keys, "HS keys are secrets: give the path of a file")
            if url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.hostname or "")):
                raise ConfigError("auth.issuers[].keys", self.keys, "who stands between could change it: give https")
        else:
            _require_absolute("auth.issuers[].keys", self.keys)


class AuthConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may ask. With nothing set nobody is asked who he is, and the server listens on loopback only."""

    api_keys: Annotated[
        str, Meta(description="Absolute path of the file of API keys (`manta key`), on every host with a gateway.")
    ] = ""
    issuers: Annotated[tuple[IssuerConfig, ...], Meta(description="Who may issue tokens.")] = ()
    revoked: Annotated[
        str,
        Meta(
            description="Absolute path of a text file: what is refused from now on, one a line: a token's `jti`, "
            "the `kid` of a signing key, the id of an API key."
        ),
    ] = ""

    def __post_init__(self) -> None:
        for name in ("api_keys", "revoked"):
            if getattr(self, name):
                _require_absolute(f"auth.{name}", getattr(self, name))
        if self.revoked and not self.is_on:
            raise ConfigError("auth.revoked", self.revoked, "revokes nothing as long as auth is off: set auth.api_keys")
        names = [issuer.issuer for issuer in self.issuers]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError("auth.issuers[].issuer", name, "is there twice; give each issuer one entry")
        symmetric = [issuer.issuer for issuer in self.issuers if issuer.family is Family.HS]
        if symmetric and len(symmetric) < len(names):
            remedy = "symmetric and asymmetric signatures must not be mixed: give all issuers HS, or none"
            raise ConfigError("auth.issuers[].family", "HS", remedy)

    @property
    def is_on(self) -> bool:
        """Whether every request must say who asks."""
        return bool(self.api_keys or self.issuers)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches who listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _require_absolute(field: str, path: str) -> None:
    if not Path(path).is_absolute():
        raise ConfigError(field, path, "is read on whatever host a gateway runs: give an absolute path")
