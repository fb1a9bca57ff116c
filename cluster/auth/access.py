"""What an endpoint asks of its callers. Each says it itself, and there is no default."""

from enum import StrEnum

from cluster.auth.principal import Principal
from cluster.errors import Forbidden


class Access(StrEnum):
    """Who may call."""

    OPEN = "open"  #: anybody, unasked: for probes, which say nothing about anyone
    USER = "user"  #: who has said who he is
    ADMIN = "admin"  #: who may see and change what belongs to all tenants


def require_admin(principal: Principal) -> None:
    """Forbidden for all others."""
    if not principal.is_admin:
        raise Forbidden("This needs the scope `manta:admin`, or an API key made with --admin.")
