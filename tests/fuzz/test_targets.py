"""Each target on a few inputs; `python -m scripts.fuzz` for as many as one likes."""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_few(name: str) -> None:
    target = TARGETS[name]
    settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))(
        given(target.given)(target.check)
    )()
