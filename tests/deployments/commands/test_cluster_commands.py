"""`manta up` and `manta down` around a program that stands in for `ssh`; where an app on several hosts answers."""

import os
from pathlib import Path
from typing import Any

import pytest

from cluster.auth.config import AuthConfig
from cluster.config import Edge, GatewayConfig, MantaConfig
from deployments import cli
from deployments.commands import placement
from deployments.commands.cluster_file import read_cluster_file
from deployments.commands.down import stop_host
from deployments.commands.placement import OnlyLoopback, gateway_urls, require_reachable

ROOT = Path(__file__).resolve().parents[3]
LOCAL = str(ROOT / "ray_config.local.yaml")


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program `ssh` that notes its last two words, and cannot reach the second worker."""
    program, told = tmp_path / "ssh", tmp_path / "told"
    program.write_text(
        f'#!/bin/sh\nfor word; do before=$last; last=$word; done\necho "$before $last" >> {told}\n'
        'case $before in *.12) echo "no route to host" >&2; exit 255;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return told


def test_each_named_machine_is_stopped_by_its_own_ray(ssh: Path) -> None:
    cluster = read_cluster_file(LOCAL)
    reasons = [stop_host(cluster, host, command) for host, command in cluster.stops]
    assert reasons == ["", "", "not stopped, no route to host"]
    command = "bash --login -c '~/manta/.venv/bin/ray stop'"
    assert ssh.read_text().splitlines() == [f"manta@192.0.2.{last} {command}" for last in (10, 11, 12)]


@pytest.mark.parametrize("command", ["up", "down"])
def test_a_file_that_is_none_is_said_in_a_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "/nowhere/cluster.yaml"]) == 2
    assert capsys.readouterr().err == "manta: /nowhere/cluster.yaml: No such file or directory\n"


def configured(host: str, edge: Edge = Edge.AUTO) -> MantaConfig:
    return MantaConfig(gateway=GatewayConfig(host=host, edge=edge), auth=AuthConfig(api_keys="/etc/manta/keys.json"))


def details(proxies: list[str], *gateways: tuple[str, str]) -> dict[str, Any]:
    replicas = [{"node_ip": address, "state": state, "node_id": address} for address, state in gateways]
    return {
        "proxies": {address: {"node_ip": address} for address in proxies},
        "applications": {"manta": {"deployments": {"gateway": {"replicas": replicas}}}},
    }


@pytest.mark.parametrize(
    ("host", "proxies", "urls"),
    [
        ("0.0.0.0", [], ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]),
        ("::", [], ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]),
        ("0.0.0.0", ["10.0.0.7"], ["http://10.0.0.7:8000"]),
        ("127.0.0.1", [], ["http://127.0.0.1:8000"]),
        ("::1", [], ["http://[::1]:8000"]),
    ],
)
def test_who_answers(monkeypatch: pytest.MonkeyPatch, host: str, proxies: list[str], urls: list[str]) -> None:
    gateways = (("10.0.0.2", "RUNNING"), ("10.0.0.1", "RUNNING"), ("10.0.0.2", "RUNNING"), ("10.0.0.3", "STARTING"))
    monkeypatch.setattr(placement, "_details", lambda: details(proxies, *gateways))
    assert gateway_urls(configured(host)) == urls
    assert placement.place_replicas() == {"10.0.0.1": {"gateway": 1}, "10.0.0.2": {"gateway": 2}}


@pytest.mark.parametrize(
    ("host", "edge", "proxies", "num_alive", "is_refused"),
    [
        ("127.0.0.1", Edge.AUTO, [], 2, True),
        ("localhost", Edge.DIRECT, ["10.0.0.1"], 2, True),
        ("127.0.0.1", Edge.AUTO, [], 1, False),
        ("127.0.0.1", Edge.AUTO, ["10.0.0.1"], 2, False),
        ("127.0.0.1", Edge.PROXY, [], 2, False),
        ("0.0.0.0", Edge.AUTO, [], 2, False),
    ],
)
def test_loopback_on_several_hosts_is_refused(
    monkeypatch: pytest.MonkeyPatch, host: str, edge: Edge, proxies: list[str], num_alive: int, is_refused: bool
) -> None:
    nodes = [{"Alive": number < num_alive} for number in range(3)]
    monkeypatch.setattr(placement, "_details", lambda: details(proxies))
    monkeypatch.setattr(placement.ray, "nodes", lambda: nodes)
    config = configured(host, edge)
    if not is_refused:
        require_reachable(config)
        return
    with pytest.raises(OnlyLoopback, match=r"cluster of 2 hosts .* --host 0\.0\.0\.0"):
        require_reachable(config)
