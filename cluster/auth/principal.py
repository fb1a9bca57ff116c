"""Principal: who asks, and what that one may do."""

import msgspec


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """A verified identity. Everything that belongs to somebody belongs to a tenant."""

    tenant: str = "default"
    models: frozenset[str] | None = None  #: served names it may use; None: all
    is_admin: bool = False  #: may see and change what belongs to all tenants
    reads_metrics: bool = False  #: may see the numbers of all tenants; an admin may anyway
    key_id: str = ""  #: names the credential (an API key's or a token's id), for logs and the ledger; empty: none
