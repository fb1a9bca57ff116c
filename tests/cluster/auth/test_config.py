"""What of `auth` is refused at the start, and in whose words."""

from typing import Any

import pytest

from cluster.auth.config import is_loopback
from cluster.config import MantaConfig
from cluster.config_reader import read_config
from engine.errors import ConfigError

ISSUER = {"issuer": "https://i", "audience": "manta", "keys": "https://i/jwks.json"}


def read(gateway: dict[str, Any] | None = None, **auth: Any) -> MantaConfig:
    return read_config({"auth": auth, "gateway": gateway or {}})


def test_off_is_for_loopback_only() -> None:
    assert not read().auth.is_on
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        assert is_loopback(host) and read({"host": host})
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.com", "", "::ffff:10.0.0.1"):
        for edge in ("direct", "proxy", "auto"):
            with pytest.raises(ConfigError, match=r"gateway\.host.*manta key create.*listen on 127\.0\.0\.1"):
                read({"host": host, "edge": edge})
            assert read({"host": host, "edge": edge}, api_keys="/k.json").auth.is_on
        assert read({"host": host}, issuers=[ISSUER]).auth.is_on


@pytest.mark.parametrize(
    ("auth", "words"),
    [
        ({"api_keys": "keys.json"}, ["auth.api_keys", "keys.json", "give an absolute path"]),
        ({"revoked": "/r.txt"}, ["auth.revoked", "as long as auth is off"]),
        ({"revoked": "r.txt", "api_keys": "/k"}, ["auth.revoked", "give an absolute path"]),
        ({"issuers": [ISSUER | {"keys": "jwks.json"}]}, ["auth.issuers[].keys", "absolute path"]),
        ({"issuers": [ISSUER | {"keys": "http://i/jwks.json"}]}, ["auth.issuers[].keys", "give https"]),
        ({"issuers": [ISSUER | {"keys": "ftp://i/jwks.json"}]}, ["auth.issuers[].keys", "give https"]),
        ({"issuers": [ISSUER | {"family": "HS"}]}, ["auth.issuers[].keys", "give the path of a file"]),
        ({"issuers": [ISSUER | {"family": "PS"}]}, ["auth.issuers[0].family", "use one of RS, ES, EdDSA, HS"]),
        ({"issuers": [ISSUER, ISSUER]}, ["auth.issuers[].issuer", "https://i", "twice"]),
        (
            {"issuers": [ISSUER, {"issuer": "h", "audience": "a", "keys": "/h.json", "family": "HS"}]},
            ["auth.issuers[].family", "must not be mixed"],
        ),
        ({"issuers": [{"issuer": "h"}]}, ["audience"]),
        ({"issuers": [ISSUER | {"audience": ""}]}, ["audience"]),
        ({"issuers": [ISSUER | {"algorithms": ["none"]}]}, ["algorithms", "unknown key"]),
    ],
)
def test_mistakes_are_named(auth: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**auth)
    for word in words:
        assert word in str(caught.value)


def test_what_is_fine() -> None:
    secret = {"issuer": "h", "audience": "a", "keys": "/h.json", "family": "HS"}
    read(issuers=[secret, secret | {"issuer": "h2"}], revoked="/r.txt")
    read(issuers=[ISSUER, ISSUER | {"issuer": "j", "keys": "/j.json", "family": "ES"}], api_keys="/k.json")
    read(issuers=[ISSUER | {"keys": "http://127.0.0.1:9000/jwks.json"}])


def test_a_header_names_no_tenant_beside_credentials() -> None:
    with pytest.raises(ConfigError, match=r"gateway\.tenant_header.*keys and tokens name the tenant"):
        read({"tenant_header": "X-Tenant", "edge": "direct"}, api_keys="/k.json")
