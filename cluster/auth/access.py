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
    """Forbidden for who has said who he is, and may not. Who reads metrics and may use no model is no user."""
    if principal.is_admin or access is Access.OPEN:
        return
    if access is Access.USER:
        if principal.reads_metrics and principal.models is not None and not principal.models:
            raise Forbidden("This credential reads the metrics and is good for nothing else.")
        return
    if access is Access.ADMIN:
        raise Forbidden("This needs the scope `manta:admin`, or an API key made with --admin.")
    if not principal.reads_metrics:
        raise Forbidden("This needs the scope `manta:metrics`, or an API key made with --metrics or --admin.")
