"""Where Serve has put what it runs: the replicas of each host, and the URLs that answer."""

from collections import Counter
from typing import Any

import ray
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from cluster.auth.config import is_loopback
from cluster.config import Edge, MantaConfig
from deployments.app import APP_NAME
from engine.errors import MantaError

_ANY = ("0.0.0.0", "::")


class OnlyLoopback(MantaError):
    """Gateways on several hosts, each of which would answer its own host alone."""

    def __init__(self, host: str, num_hosts: int) -> None:
        super().__init__(host, num_hosts)
        self.host, self.num_hosts = host, num_hosts

    def __str__(self) -> str:
        remedy = "give --host 0.0.0.0 and --api-keys FILE (docs/security.md)"
        return f"gateway.host {self.host!r}: on a cluster of {self.num_hosts} hosts nobody knows whose; {remedy}"


def place_replicas() -> dict[str, dict[str, int]]:
    """Running replicas by node id, then deployment."""
    placed: dict[str, Counter[str]] = {}
    for name, deployment in list_deployments().items():
        for replica in deployment["replicas"]:
            if replica["state"] == "RUNNING":
                placed.setdefault(replica["node_id"], Counter())[name] += 1
    return {node: dict(counts) for node, counts in placed.items()}


def require_reachable(config: MantaConfig) -> None:
    """Before anything is started; raises `OnlyLoopback` where gateways would listen on some hosts' loopback."""
    edge, num_hosts = config.gateway.edge, sum(node["Alive"] for node in ray.nodes())
    if num_hosts < 2 or not is_loopback(config.gateway.host) or edge is Edge.PROXY:
        return
    if edge is Edge.DIRECT or not _details().get("proxies"):
        raise OnlyLoopback(config.gateway.host, num_hosts)


def gateway_urls(config: MantaConfig) -> list[str]:
    """One for each host that answers, sorted; one alone where the configuration names the address."""
    host, port = config.gateway.host, config.gateway.port
    if host not in _ANY:
        return [_url(host, port)]
    details = _details()
    doors: list[dict[str, Any]] = list((details.get("proxies") or {}).values())
    if not doors:
        gateways = list_deployments().get("gateway", {}).get("replicas", [])
        doors = [door for door in gateways if door["state"] == "RUNNING"]
    return sorted({_url(door["node_ip"], port) for door in doors})


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def list_deployments() -> dict[str, Any]:
    """As Serve tells of them; nothing where the app is not."""
    app = (_details().get("applications") or {}).get(APP_NAME) or {}
    found: dict[str, Any] = app.get("deployments") or {}
    return found


def _details() -> dict[str, Any]:
    """What Serve's controller tells its dashboard; nothing where Serve does not run."""
    try:
        details: dict[str, Any] = _get_global_client().get_serve_details()
    except RayServeException:
        return {}
    return details
