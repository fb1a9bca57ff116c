"""The Serve application: `serve run --name manta deployments.app:build model=DIR replicas=2`, or in a Serve YAML.

Under the name `manta` the Python handle is found: `serve.get_app_handle("manta")`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray import serve
from ray.serve import Application

from cluster.config import MantaConfig, ModelConfig
from cluster.config_reader import read_config
from deployments.gateway_deployment import GatewayDeployment
from deployments.replica_deployment import ReplicaDeployment

APP_NAME = "manta"
#: Serve counts only what passes its own handles and proxies; the real bound is the router's queue.
_MAX_ONGOING = 100_000
#: A dead process is found by the next look at its health.
_SERVE_SETTINGS: dict[str, Any] = {
    "max_ongoing_requests": _MAX_ONGOING,
    "health_check_period_s": 1.0,
    "graceful_shutdown_timeout_s": 10.0,
}


def build(args: Mapping[str, Any]) -> Application:
    """The app from builder arguments: a nested mapping (YAML), or flat `key=value` words with dotted keys.

    `config=FILE` names a config file; other arguments override it.
    """
    flat = [f"{key}={value}" for key, value in args.items() if "." in key]
    nested = {key: value for key, value in args.items() if "." not in key and key != "config"}
    return build_app(read_config(nested, file=args.get("config"), overrides=flat))


def build_app(config: MantaConfig) -> Application:
    """Gateway and one deployment of engines per model."""
    encoded = msgspec.json.encode(config).decode()
    replica = serve.deployment(**_SERVE_SETTINGS)(ReplicaDeployment)
    gateway = serve.deployment(**_SERVE_SETTINGS)(GatewayDeployment)
    engines = [
        replica.options(
            name=f"engine-{model.served_name}", num_replicas=model.replicas, ray_actor_options=_resources(model)
        ).bind(encoded, model.served_name)
        for model in config.models
    ]
    named = gateway.options(name="gateway", num_replicas=config.gateway.replicas, ray_actor_options={"num_cpus": 0})
    return named.bind(encoded, *engines)


def _resources(model: ModelConfig) -> dict[str, Any]:
    """A GPU where the engine uses one; else a share of a CPU that lets all replicas of a small host be placed."""
    if model.is_chain:
        return {"num_cpus": 0.01}
    device = model.engine.device
    if device.startswith("cuda") or (device == "auto" and _has_gpus()):
        return {"num_gpus": 1, "num_cpus": 1}
    return {"num_cpus": 0.5}


def _has_gpus() -> bool:
    """Whether Ray has GPUs to give. `serve run` builds the app before it connects: then this machine stands for all."""
    if ray.is_initialized():
        return bool(ray.cluster_resources().get("GPU", 0) > 0)
    return any(Path("/dev").glob("nvidia[0-9]*"))
