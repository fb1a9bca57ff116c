"""The placement group of a replica: one bundle for each pipeline stage; Ray reserves them, and starts and watches what
runs in them. No plan and no result goes this way."""

from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import get_current_placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

_CALL_TIMEOUT_S = 10.0


class WorkerLost(OSError):
    """The actor in a bundle, or its host, is gone."""

    def __init__(self, address: str, why: str) -> None:
        super().__init__(address, why)
        self.address, self.why = address, why

    def __str__(self) -> str:
        return f"the host {self.address} is lost: {self.why}"


class Answer:
    """Of a call that is under way."""

    def __init__(self, reference: Any, address: str) -> None:
        self._reference, self._address = reference, address

    def get(self, timeout_s: float | None = _CALL_TIMEOUT_S) -> Any:
        """What was returned or raised; `WorkerLost` when there is none in time. None: as long as the actor lives."""
        try:
            return ray.get(self._reference, timeout=timeout_s)
        except RayTaskError as error:
            raise error.cause from None
        except GetTimeoutError:
            raise WorkerLost(self._address, f"no answer within {timeout_s:.0f} s") from None
        except RayError as error:
            raise WorkerLost(self._address, type(error).__name__) from None

    def is_there(self) -> bool:
        """Whether `get` would not wait; also when the actor is lost."""
        ready, _ = ray.wait([self._reference], timeout=0)
        return bool(ready)


class Worker:
    """An actor that has all of one bundle. It ends with the process that has made it, however that ends."""

    def __init__(self, actor: Any, address: str) -> None:
        self._actor = actor
        self._address = address

    def call(self, method: str, *arguments: object) -> Answer:
        """Begin; without waiting."""
        return Answer(getattr(self._actor, method).remote(*arguments), self._address)

    def kill(self) -> None:
        """End the actor's process at once."""
        ray.kill(self._actor)


class WorkerGroup:
    """The bundles that this actor was placed with; it runs in the first one itself."""

    def __init__(self) -> None:
        group = get_current_placement_group()
        if group is None:
            raise RuntimeError("this process was placed without a placement group")
        self._group = group
        by_bundle = placement_group_table(group)["bundles_to_node_id"]
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        self.node_ids: list[str] = [by_bundle[bundle] for bundle in range(len(group.bundle_specs))]
        self.addresses: list[str] = [addresses[node_id] for node_id in self.node_ids]
        self.has_gpus = any("GPU" in bundle for bundle in group.bundle_specs)

    def start(self, bundle: int, kind: type, *arguments: object) -> Worker:
        """A `kind` with these arguments in this bundle, of which it takes all; when it is there shows at its calls."""
        resources = dict(self._group.bundle_specs[bundle])
        actor = ray.remote(
            num_cpus=resources.pop("CPU", 0),
            num_gpus=resources.pop("GPU", 0),
            resources=resources,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, bundle),
        )(kind)
        return Worker(actor.remote(*arguments), self.addresses[bundle])
