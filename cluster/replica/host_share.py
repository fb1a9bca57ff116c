"""Which part of its host a stage of a replica takes, when the stages of all are spread evenly over the hosts."""

from dataclasses import dataclass

from cluster.config import MantaConfig, ModelConfig


@dataclass(frozen=True, slots=True)
class HostShare:
    """`parts`: the indices of a stage's ranks among the `num_parts` that its host is dealt to. (A model that is not
    split is computed by one stage of one rank.)"""

    parts: tuple[int, ...]
    num_parts: int


def host_share(config: MantaConfig, model: ModelConfig, number: int, num_hosts: int) -> HostShare:
    """`number`: of the stage among those of its model on its host. More than an even spread gives share parts."""
    first = num_parts = 0
    for other in config.models:
        if other is model:
            first = num_parts
        num_parts += -(-other.replicas * other.pipeline_parallel // max(1, num_hosts)) * other.tensor_parallel
    first += model.tensor_parallel * number
    return HostShare(tuple((first + index) % num_parts for index in range(model.tensor_parallel)), num_parts)
