"""The cluster files are what `ray up` and KubeRay accept, and their commands name things that exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from deployments import app
from deployments.commands.cluster_file import BadClusterFile, read_cluster_file

ROOT = Path(__file__).resolve().parents[2]
FILES = ("ray_config.yaml", "ray_config.local.yaml")


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize(("name", "num_hosts"), [("ray_config.yaml", 4), ("ray_config.local.yaml", 3)])
def test_ray_accepts_the_files(name: str, num_hosts: int) -> None:
    cluster = read_cluster_file(str(ROOT / name))
    assert (cluster.num_hosts, cluster.name) == (num_hosts, "manta")
    assert set(cluster.stop_commands) == {"~/manta/.venv/bin/ray stop"}


@pytest.mark.parametrize("name", FILES)
def test_project_token_and_settings_reach_every_host(name: str) -> None:
    cluster = load(name)
    assert cluster["file_mounts"] == {"~/manta": ".", "~/.ray/auth_token": "~/.ray/auth_token"}
    for command in cluster["setup_commands"]:
        script = re.fullmatch(r"cd ~/manta && (\S+)", command)
        assert script and (ROOT / script[1]).exists()
    for start in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "source ~/manta/scripts/ray_settings;" in cluster[start][-1]
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in cluster["head_start_ray_commands"][-1]


def test_both_files_start_ray_alike() -> None:
    cloud, local = map(load, FILES)
    for start in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert cloud[start] == local[start]


def test_the_cloud_has_spot_workers_above_a_floor() -> None:
    kinds = load("ray_config.yaml")["available_node_types"]
    spot = {name for name, kind in kinds.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"worker_spot"} and kinds["worker_on_demand"]["min_workers"] >= 1


def test_kuberay_serves_our_app() -> None:
    service = load("ray_service.yaml")
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    ray_cluster = service["spec"]["rayClusterConfig"]
    groups = [ray_cluster["headGroupSpec"], *ray_cluster["workerGroupSpecs"]]
    images = [group["template"]["spec"]["containers"][0]["image"] for group in groups]
    assert len(set(images)) == 1 and f"ray[serve]=={ray_cluster['rayVersion']}" in (ROOT / "pyproject.toml").read_text()
    serve_config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (named,) = serve_config.applications
    assert (named.name, named.import_path) == (app.APP_NAME, "deployments.app:build")
    app.build(named.args)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: []", "provider.type"),
        ("{", "flow"),
        ("cluster_name: x\nprovider: {type: local, head_ip: 192.0.2.1}\nauth: {ssh_user: u}", "worker_ips"),
        ("cluster_name: x\nprovider: {type: aws, region: r}\nmax_wrokers: 2", "max_wrokers"),
    ],
)
def test_what_ray_would_refuse_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadClusterFile, match=words) as refused:
        read_cluster_file(str(path))
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_workers_are_reached_by_the_key_and_through_the_head(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text((ROOT / "ray_config.local.yaml").read_text().replace("# external_head_ip", "external_head_ip"))
    words = read_cluster_file(str(path)).ssh("192.0.2.11", "ray stop")
    assert words[-2:] == ["manta@192.0.2.11", "bash --login -c 'ray stop'"]
    (proxy,) = (word for word in words if word.startswith("ProxyCommand="))
    assert "-W %h:%p manta@198.51.100.7" in proxy.replace("'", "")
