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
#: Gateways and router shards ask for little, but something: two ranks for each CPU are to fit beside them.
CPUS_OF_RANK = 0.4
#: Over what a leave takes: past it Serve kills.
_STOP_MARGIN_S = 15.0
#: A dead process is found by the next look at its health, a frozen one by three that time out. The look waits for the
#: event loop alone, never for the engine. Serve's shutdown begins with one wait loop, and admission is to stop at once.
_SERVE_SETTINGS: dict[str, Any] = {
    "max_ongoing_requests": _MAX_ONGOING,
    "health_check_period_s": 1.0,
    "health_check_timeout_s": 5.0,
    "graceful_shutdown_wait_loop_s": 0.1,
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
            name=f"engine-{model.served_name}",
            num_replicas=model.replicas,
            **_placement(model),
            graceful_shutdown_timeout_s=max(model.drain_s, model.grace_s) + _STOP_MARGIN_S,
            max_surge_percent=0 if _uses_gpu(model) else 1,  # one more at a time, where memory and CPUs allow it
        ).bind(encoded, model.served_name)
        for model in config.models
    ]
    named = gateway.options(
        name="gateway",
        num_replicas=config.gateway.replicas,
        ray_actor_options={"num_cpus": 0.001},  # of nothing at all Ray spreads nothing
        graceful_shutdown_timeout_s=max(config.gateway.drain_s, config.gateway.request_timeout_s) + _STOP_MARGIN_S,
        max_surge_percent=100,
    )
    return named.bind(encoded, *engines)


def _placement(model: ModelConfig) -> dict[str, Any]:
    """What Ray sets aside for a replica: for each stage a bundle, of which the ranks are together on one host.

    The replica's own process is in the first. Stages on CPUs go to hosts of their own where there are any, for what
    they wait for is their host's memory; stages on GPUs stay together where they fit.
    """
    bundles = bundles_of(model)
    first = bundles[0]
    options: dict[str, Any] = {"ray_actor_options": {"num_cpus": first["CPU"], "num_gpus": first.get("GPU", 0)}}
    if len(bundles) > 1:
        options["placement_group_bundles"] = bundles
        options["placement_group_strategy"] = "PACK" if "GPU" in first else "SPREAD"
    return options


def bundles_of(model: ModelConfig) -> list[dict[str, float]]:
    """By stage: a GPU for each rank, or a share of a CPU that lets all replicas of a small host be placed."""
    size = model.tensor_parallel
    if _uses_gpu(model):
        return [{"CPU": size, "GPU": size}] * model.pipeline_parallel
    return [{"CPU": 0.01 if model.is_chain else CPUS_OF_RANK * size}] * model.pipeline_parallel


def _uses_gpu(model: ModelConfig) -> bool:
    device = model.engine.device
    return not model.is_chain and (device.startswith("cuda") or (device == "auto" and _has_gpus()))


def _has_gpus() -> bool:
    """Whether Ray has GPUs to give. `serve run` builds the app before it connects: then this machine stands for all."""
    if ray.is_initialized():
        return bool(ray.cluster_resources().get("GPU", 0) > 0)
    return any(Path("/dev").glob("nvidia[0-9]*"))
