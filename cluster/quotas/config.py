"""The settings of quotas: what each tenant may ask and be answered in a minute, and where that is kept."""

from typing import Annotated

import msgspec
from msgspec import Meta


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of one tenant, or of one tenant with one model."""

    requests_per_minute: Annotated[int, Meta(ge=0, description="Requests that may begin. 0: no limit.")] = 0
    tokens_per_minute: Annotated[
        int, Meta(ge=0, description="Tokens: prompt, and output over all choices. 0: no limit.")
    ] = 0


class TenantLimits(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of all that a tenant asks, and of single models besides."""

    models: Annotated[dict[str, Limits], Meta(description="Further limits for a model, by its served name.")] = {}


class QuotaConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant may ask for in a minute. Never exceeded, with any number of gateways."""

    default: Annotated[TenantLimits, Meta(description="For each tenant that is not named.")] = TenantLimits()
    tenants: Annotated[
        dict[str, TenantLimits], Meta(description="Limits of tenants, by name, instead of `default`.")
    ] = {}
    cached_weight: Annotated[
        float, Meta(ge=0.0, le=1.0, description="What a prompt token counts that was found in the prefix cache.")
    ] = 1.0
    redis: Annotated[
        str,
        Meta(
            pattern=r"^(rediss?|unix)://|^$",
            description="URL of the Redis that keeps the limits, for several clusters or to survive a restart of all "
            "shards (needs `manta-serve[redis]`). Empty: the router shards keep them.",
        ),
    ] = ""

    def of(self, tenant: str) -> TenantLimits:
        """The limits of a tenant."""
        return self.tenants.get(tenant, self.default)

    @property
    def is_on(self) -> bool:
        """Whether there is any limit."""
        return any(limits != TenantLimits() for limits in (self.default, *self.tenants.values()))
