"""Which part of its host a stage of a replica takes, when the stages of all are spread evenly over the hosts."""

from dataclasses import dataclass

from cluster.config import MantaConfig, ModelConfig


@dataclass(frozen=True, slots=True)
class HostShare:
    """`parts`: the indices of a stage's ranks among the `num_parts` that its host is dealt to. (A model that is not
    split is computed by one stage of one rank.)"""

    parts: tuple[int, ...]
    num_parts: int


def num_places(model: ModelConfig, num_hosts: int) -> int:
    """Stages of the model that one host has, when they are spread evenly; more than these share places."""
    return -(-model.replicas * model.pipeline_parallel // max(1, num_hosts))


def host_share(config: MantaConfig, model: ModelConfig, place: int, num_hosts: int) -> HostShare:
    """`place`: which of the model's `num_places` a stage has on its host."""
    first = num_parts = 0
    for other in config.models:
        if other is model:
            first = num_parts
        num_parts += num_places(other, num_hosts) * other.tensor_parallel
    first += model.tensor_parallel * place
    return HostShare(tuple(range(first, first + model.tensor_parallel)), num_parts)
