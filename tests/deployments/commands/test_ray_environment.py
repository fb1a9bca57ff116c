"""What is put into the environment before Ray is imported, for each kind of cluster that a process may join."""

from pathlib import Path

import pytest

from cluster.config import MantaConfig
from deployments.commands import ray_environment
from deployments.commands.local_cluster import local_ray
from deployments.commands.ray_environment import AUTH_MODE, OUTER_ADDRESSES, is_loopback, prepare_to_join
from engine.errors import ConfigError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without a token, on a host without clusters."""
    for name in (AUTH_MODE, OUTER_ADDRESSES, "RAY_ADDRESS"):
        monkeypatch.setenv(name, "to be taken back")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray_environment, "running_clusters", list)
    return tmp_path


def joined(address: str | None) -> dict[str, str]:
    prepare_to_join(address)
    environment = ray_environment.os.environ
    return {name: environment[name] for name in (AUTH_MODE, OUTER_ADDRESSES) if name in environment}


def test_nothing_is_set_without_need() -> None:
    assert joined(None) == joined("auto") == joined("10.0.0.5:6379") == {}


def test_a_token_is_used_where_there_is_one(clean_environment: Path) -> None:
    (clean_environment / ".ray").mkdir()
    (clean_environment / ".ray" / "auth_token").write_text("secret")
    assert joined("10.0.0.5:6379") == {AUTH_MODE: "token"}


def test_what_the_user_has_set_stands(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clean_environment / ".ray").mkdir()
    (clean_environment / ".ray" / "auth_token").write_text("secret")
    monkeypatch.setenv(AUTH_MODE, "disabled")
    assert joined("127.0.0.1:6379") == {AUTH_MODE: "disabled", OUTER_ADDRESSES: "0"}


def test_an_address_in_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:40535")
    assert joined("10.0.0.5:6379") == {}
    assert joined("auto") == {OUTER_ADDRESSES: "0"}


def test_a_cluster_that_runs_on_this_host_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_environment, "running_clusters", lambda: ["10.0.0.5:6379"])
    assert joined(None) == {}
    monkeypatch.setattr(ray_environment, "running_clusters", lambda: ["127.0.0.1:40535"])
    assert joined(None) == {OUTER_ADDRESSES: "0"}


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("10.127.0.0:1", False),
        ("head.example:1", False),
    ],
)
def test_loopback_addresses(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


def test_a_cluster_that_asks_nobody_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTH_MODE, "disabled")
    with pytest.raises(ConfigError, match="run what any stranger sends it; unset it"), local_ray(MantaConfig(), None):
        raise AssertionError
