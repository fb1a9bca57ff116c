"""A Ray cluster of one machine for `manta serve`: started quietly, bound to loopback, gone when the command ends."""

import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray import serve

from cluster.config import Edge, MantaConfig
from deployments.app import APP_NAME
from deployments.commands.ray_environment import AUTH_MODE
from deployments.commands.router_status import merge_status
from deployments.router_actor import NAMESPACE, router_name
from engine.errors import ConfigError

_QUIET = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}
#: Serve's controller looks at its replicas ten times a second, which on two cores costs an engine 6 % of its speed.
_CALM = {"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1.0"}


@contextmanager
def local_ray(config: MantaConfig, address: str | None) -> Iterator[None]:
    """Join the cluster at `address`, or start one of this machine's own; what was started ends with the block."""
    for key, value in (_QUIET if address is not None else {**_QUIET, **_CALM}).items():
        os.environ.setdefault(key, value)
    if address is not None:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    else:
        if os.environ.get(AUTH_MODE) == "disabled":
            danger = "Ray Serve listens on every address, and would run what any stranger sends it; unset it"
            raise ConfigError(AUTH_MODE, "disabled", danger)
        cpus = max(os.cpu_count() or 1, sum(model.replicas * model.num_ranks for model in config.models))
        ray.init(
            num_cpus=cpus,
            namespace=NAMESPACE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
            object_store_memory=100 * 1024 * 1024,
        )
    try:
        yield
    finally:
        ray.shutdown()


def start_serve(config: MantaConfig) -> None:
    """Serve without a proxy, unless the config asks for one: then the proxy has the gateway's host and port."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    gateway = config.gateway
    proxied = gateway.edge is Edge.PROXY
    serve.start(
        proxy_location="EveryNode" if proxied else "Disabled",
        http_options={"host": gateway.host, "port": gateway.port} if proxied else None,
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )


def stop_app() -> None:
    """Take the app and its router shards away; never raises, for it runs on the way out."""
    with suppress(Exception):
        serve.delete(APP_NAME, _blocking=True)
    for shard in reversed(find_routers()):  # a later one would bring an earlier one back
        with suppress(Exception):
            ray.kill(shard)
    with suppress(Exception):
        serve.shutdown()


def find_routers() -> list[Any]:
    """Handles of the router shards that run, in order; none when no Manta app is on this cluster."""
    found = []
    for number in itertools.count():
        try:
            found.append(ray.get_actor(router_name(number), namespace=NAMESPACE))
        except ValueError:
            return found
    raise AssertionError


def router_status(timeout_s: float = 5.0) -> dict[str, Any] | None:
    """What all router shards say of themselves, as one; None when there is none."""
    asked = [shard.status.remote() for shard in find_routers()]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
    statuses = []
    for answer in answered:
        with suppress(ray.exceptions.RayError):
            statuses.append(ray.get(answer))
    return merge_status(statuses) if statuses else None
