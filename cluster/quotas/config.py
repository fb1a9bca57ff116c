"""The settings of quotas: what each tenant may ask and be answered in a minute, and where that is kept."""

from collections.abc import Collection
from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.auth.credential import is_tenant
from engine.errors import ConfigError

DEFAULT_SHARE = 0.25  #: of a minute's tokens: so several calls that say nothing can run at a time


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
            description="URL of the Redis that keeps the limits, to survive a restart of all shards (needs "
            "`manta-serve[redis]`); of one cluster alone. Empty: the router shards keep them.",
        ),
    ] = ""

    def __post_init__(self) -> None:
        for name in self.tenants:
            if not is_tenant(name):
                remedy = "no tenant can have this name: 1 to 64 letters, digits, `.`, `_` or `-`"
                raise ConfigError("quotas.tenants", name, remedy)
        if self.redis and not self.is_on:
            remedy = "keeps nothing as long as there is no limit: set one in quotas.default or quotas.tenants"
            raise ConfigError("quotas.redis", self.redis, remedy)

    def check_models(self, served: Collection[str]) -> None:
        """ConfigError for the limit of a model that is not served."""
        of_all = [
            ("quotas.default", self.default),
            *((f"quotas.tenants.{n}", each) for n, each in self.tenants.items()),
        ]
        for field, limits in of_all:
            for model in limits.models:
                if model not in served:
                    remedy = f"is not served, so this never applies; name one of: {', '.join(sorted(served))}"
                    raise ConfigError(f"{field}.models", model, remedy)

    def of(self, tenant: str) -> TenantLimits:
        """The limits of a tenant."""
        return self.tenants.get(tenant, self.default)

    def default_output(self, tenant: str, model: str, num_prompt_tokens: int) -> int | None:
        """Tokens of output that are reserved for a call which does not say how many it wants; None: no limit.

        The `DEFAULT_SHARE` of the least limit, or less where the prompt leaves less of it.
        """
        limits = self.of(tenant)
        scopes = (limits, limits.models.get(model, Limits()))
        least = min((scope.tokens_per_minute for scope in scopes if scope.tokens_per_minute), default=None)
        return None if least is None else max(1, min(int(least * DEFAULT_SHARE), least - num_prompt_tokens))

    @property
    def is_on(self) -> bool:
        """Whether there is any limit."""
        return any(limits != TenantLimits() for limits in (self.default, *self.tenants.values()))
