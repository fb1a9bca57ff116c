"""What an endpoint asks of its callers. Each says it itself, and there is no default."""

from enum import StrEnum

from cluster.auth.principal import Principal
from cluster.errors import Forbidden


class Access(StrEnum):
    """Who may call."""

    OPEN = "open"  #: anybody, unasked: for probes, which say nothing about anyone
    USER = "user"  #: who has said who he is
    METRICS = "metrics"  #: who may see the numbers of all tenants
    ADMIN = "admin"  #: who may see and change what belongs to all tenants


def require(access: Access, principal: Principal) -> None:
    """Forbidden for who has said who he is, and may not."""
    if principal.is_admin or access not in (Access.METRICS, Access.ADMIN):
        return
    if access is Access.ADMIN:
        raise Forbidden("This needs the scope `manta:admin`, or an API key made with --admin.")
    if not principal.reads_metrics:
        raise Forbidden("This needs the scope `manta:metrics`, or an API key made with --metrics or --admin.")
