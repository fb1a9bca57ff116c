"""What all kinds of credentials have in common."""

import re
from typing import NamedTuple

from cluster.auth.principal import Principal

ANY_MODEL = "*"
TENANT_PATTERN = r"\A[A-Za-z0-9._-]{1,64}\Z"


class BadCredential(Exception):
    """Not to be believed. `reason` is one word, for logs and counters; the client is never told it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Verified(NamedTuple):
    """A credential that was found good."""

    principal: Principal
    expires_at: float  #: Unix time
    ids: tuple[str, ...]  #: by any of which it can be revoked


def is_tenant(name: str) -> bool:
    """Whether a tenant can have this name."""
    return re.search(TENANT_PATTERN, name) is not None
