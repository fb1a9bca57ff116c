"""Room for the replicas of an app: what each asks for, and what is said where the hosts do not have it."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import ray

from cluster.config import MantaConfig, ModelConfig
from deployments.app import bundles_of
from deployments.commands.placement import list_deployments
from deployments.commands.start_progress import StartProgress
from engine.errors import MantaError

PATIENCE_S = 5.0  #: Ray places at once where there is room

Resources = Mapping[str, float]


class NoRoom(MantaError):
    """A stage asks for more than any host has."""

    def __init__(self, model: str, why: str) -> None:
        super().__init__(model, why)
        self.model, self.why = model, why

    def __str__(self) -> str:
        return f"model {self.model!r}: {self.why}"


def require_room(config: MantaConfig) -> None:
    """On a cluster to which no host will be added; raises `NoRoom` for a stage that could never be placed."""
    hosts = _hosts()
    for model in config.models:
        stage = bundles_of(model)[0]
        if not any(all(host.get(key, 0) >= asked for key, asked in stage.items()) for host in hosts.values()):
            remedy = "lower tensor_parallel, or take pipeline_parallel stages, each of which may be on another host"
            raise NoRoom(model.served_name, f"{_asks(model)}; {_have(hosts)}: {remedy}")


class RoomWatch:
    """Says which replicas wait for room, once, while an app starts."""

    def __init__(self, config: MantaConfig, progress: StartProgress) -> None:
        self._config, self._progress = config, progress
        self._looks_at = time.monotonic() + PATIENCE_S
        self._waiting: list[str] = []

    def look(self) -> None:
        """Call often."""
        if time.monotonic() >= self._looks_at:
            self._looks_at = time.monotonic() + PATIENCE_S
            before, self._waiting = self._waiting, _list_waiting(self._config)
            for text in self._waiting:
                if text not in before:
                    self._progress.say(text)

    def blame(self, remedy: str) -> str:
        """Why it takes so long; the remedy, if it is not for want of room."""
        return "; ".join(self._waiting) or remedy


def _list_waiting(config: MantaConfig) -> list[str]:
    """A line for each model of which Ray has not placed a replica for a while."""
    hosts, deployments = _hosts(), list_deployments()
    lines = []
    for model in config.models:
        replicas = deployments.get(f"engine-{model.served_name}", {}).get("replicas", [])
        number = sum(_waits(replica, time.time()) for replica in replicas)
        if number:
            which = f"{number} of {model.replicas} replicas of {model.served_name}"
            lines.append(f"no room yet for {which}: {_asks(model)}; {_have(hosts)}")
    return lines


def _waits(replica: Mapping[str, Any], now: float) -> bool:
    return replica["state"] == "STARTING" and not replica.get("node_id") and now - replica["start_time_s"] > PATIENCE_S


def _asks(model: ModelConfig) -> str:
    bundles = bundles_of(model)
    stages = f"{len(bundles)} stages, each of" if len(bundles) > 1 else "a replica asks for"
    ranks = f" on one host (its {model.tensor_parallel} ranks)" if model.tensor_parallel > 1 else ""
    return f"{stages} {_text(bundles[0])}{ranks}"


def _have(hosts: Mapping[str, Resources]) -> str:
    free = {key: round(value, 3) for key, value in ray.available_resources().items()}
    each = ", ".join(f"{address} {_text(resources)}" for address, resources in sorted(hosts.items()))
    return f"the hosts have {each}, of which {_text(free)} are free in all"


def _text(resources: Resources) -> str:
    return " and ".join(f"{resources.get(key, 0):g} {key}" for key in _told(resources))


def _told(resources: Resources) -> Iterable[str]:
    return [key for key in ("CPU", "GPU") if key == "CPU" or key in resources]


def _hosts() -> dict[str, Resources]:
    return {node["NodeManagerAddress"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
