"""ray_config.yaml is a cluster file that `ray up` accepts, and its commands name things that exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "ray_config.yaml").read_text(encoding="utf-8"))
    return loaded


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["available_node_types"]["local.cluster.node"]["max_workers"] == len(
        cluster["provider"]["worker_ips"]
    )


def test_the_project_is_sent_and_set_up(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["~/manta"] == "."
    (setup,) = cluster["setup_commands"]
    script = re.fullmatch(r"cd ~/manta && (\S+)", setup)
    assert script and (ROOT / script[1]).exists()


def test_the_head_serves_our_app(cluster: dict[str, Any]) -> None:
    from deployments import app

    serving = cluster["head_start_ray_commands"][-1]
    module, function = re.findall(r"([\w.]+):(\w+) model=", serving)[0]
    assert (module, getattr(app, function)) == ("deployments.app", app.build)
