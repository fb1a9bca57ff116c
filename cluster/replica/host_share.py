"""Which part of its host a replica takes, when the replicas of all models are spread evenly over the hosts."""

from dataclasses import dataclass

from cluster.config import MantaConfig, ModelConfig


@dataclass(frozen=True, slots=True)
class HostShare:
    """`parts`: the indices of a replica's ranks among the `num_parts` that its host is dealt to; `num_replicas`: the
    engines of a host."""

    parts: tuple[int, ...]
    num_parts: int
    num_replicas: int


def host_share(config: MantaConfig, model: ModelConfig, rank_on_host: int, num_hosts: int) -> HostShare:
    """`rank_on_host`: of the replicas of its model. More of them than an even spread gives share parts."""
    first = num_parts = num_replicas = 0
    for other in config.models:
        if other is model:
            first = num_parts
        here = -(-other.replicas // max(1, num_hosts))
        num_parts += here * other.num_ranks
        num_replicas += here
    first += model.num_ranks * rank_on_host
    parts = tuple((first + index) % num_parts for index in range(model.num_ranks))
    return HostShare(parts, num_parts, num_replicas)
