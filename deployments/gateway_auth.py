"""What the gateway's authenticator reads: key sets from issuers or files, the API keys, the list of what is revoked."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import httpx

from cluster.auth.api_keys import ApiKeys
from cluster.auth.authenticator import Authenticator, Issuer
from cluster.auth.config import AuthConfig, IssuerConfig
from cluster.auth.jwks import JwksCache
from cluster.auth.tokens import TokenRules
from deployments.watched_file import WatchedFile
from engine.errors import ConfigError

FETCH_TIMEOUT_S = 5.0
MAX_KEY_SET_BYTES = 256 * 1024


class KeySetRefused(Exception):
    """An issuer answered with something else than a key set."""


def open_auth(config: AuthConfig) -> Authenticator:
    """Reads all files once; a ConfigError names what is wrong. Issuers are asked when the first token comes."""
    api_keys = WatchedFile("auth.api_keys", config.api_keys, ApiKeys.read) if config.api_keys else ApiKeys
    revoked = WatchedFile("auth.revoked", config.revoked, _read_lines) if config.revoked else frozenset[str]
    return Authenticator({found.issuer: _issuer(found) for found in config.issuers}, api_keys, revoked, time.time)


def _issuer(config: IssuerConfig) -> Issuer:
    rules = TokenRules(config)
    fetch: Callable[[], Awaitable[bytes]]
    if "://" in config.keys:
        fetch = KeySetUrl(config.keys)
    else:
        fetch = partial(asyncio.to_thread, Path(config.keys).read_bytes)
        try:
            rules.read_keys(Path(config.keys).read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError("auth.issuers[].keys", config.keys, f"cannot be read: {error}") from None
    return Issuer(rules, JwksCache(config.issuer, fetch, rules.read_keys, time.monotonic))


class KeySetUrl:
    """Call it for the document at a URL: that one and no other, uncompressed, not larger than 256 KiB, within 5 s."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = httpx.AsyncClient(follow_redirects=False, headers={"Accept-Encoding": "identity"})

    async def __call__(self) -> bytes:
        async with asyncio.timeout(FETCH_TIMEOUT_S), self._http.stream("GET", self._url) as response:
            if response.status_code != httpx.codes.OK or "content-encoding" in response.headers:
                raise KeySetRefused(f"{self._url} answers {response.status_code}")
            body = b""
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > MAX_KEY_SET_BYTES:
                    raise KeySetRefused(f"{self._url} answers with more than {MAX_KEY_SET_BYTES} bytes")
            return body


def _read_lines(data: bytes) -> frozenset[str]:
    lines = (line.partition("#")[0].strip() for line in data.decode().splitlines())
    return frozenset(line for line in lines if line)
