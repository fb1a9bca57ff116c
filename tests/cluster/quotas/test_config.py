"""The settings of limits: what could never apply is refused, and what a call gets that says nothing."""

import re

import pytest

from cluster.config import MantaConfig, ModelConfig
from cluster.quotas.config import Limits, QuotaConfig, TenantLimits
from engine.errors import ConfigError

SOME = TenantLimits(requests_per_minute=1)


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "acme/1"])
def test_a_name_that_no_tenant_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no tenant can have this name"):
        QuotaConfig(tenants={name: SOME})


def test_a_redis_that_would_keep_nothing_is_refused() -> None:
    url = "redis://127.0.0.1:6379/0"
    with pytest.raises(ConfigError, match=r"quotas\.redis"):
        QuotaConfig(redis=url, tenants={"acme": TenantLimits()})
    assert QuotaConfig(redis=url, default=SOME).is_on


@pytest.mark.parametrize("field", ["quotas.default.models", "quotas.tenants.acme.models"])
def test_limits_of_a_model_that_is_not_served_are_refused(field: str) -> None:
    def quotas(model: str) -> QuotaConfig:
        limits = TenantLimits(models={model: SOME})
        return QuotaConfig(default=limits) if "default" in field else QuotaConfig(tenants={"acme": limits})

    models = (ModelConfig(name="m"), ModelConfig(name="other"))
    with pytest.raises(ConfigError, match=f"{re.escape(field)} = .*name one of: m, other"):
        MantaConfig(models=models, quotas=quotas("mm"))
    MantaConfig(models=models, quotas=quotas("m"))


@pytest.mark.parametrize(
    ("tenant", "model", "num_prompt", "expected"),
    [("acme", "m", 10, 25), ("acme", "m", 90, 10), ("acme", "m", 200, 1), ("acme", "x", 10, 250), ("x", "m", 10, None)],
)
def test_a_call_that_says_nothing_gets_a_quarter_or_what_its_prompt_leaves(
    tenant: str, model: str, num_prompt: int, expected: int | None
) -> None:
    limits = TenantLimits(tokens_per_minute=1000, models={"m": Limits(tokens_per_minute=100)})
    assert QuotaConfig(tenants={"acme": limits}).default_output(tenant, model, num_prompt) == expected
