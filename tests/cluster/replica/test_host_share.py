"""A stage's part of its host, on one host and on several."""

from cluster.config import MantaConfig, ModelConfig
from cluster.replica.host_share import host_share, num_places

CONFIG = MantaConfig(
    models=(
        ModelConfig(model="demo", replicas=4),
        ModelConfig(model="/models/big", replicas=2, tensor_parallel=2),
    )
)
SMALL, BIG = CONFIG.models
STAGES = MantaConfig(models=(ModelConfig(replicas=2, tensor_parallel=2, pipeline_parallel=2),))


def test_one_host_is_dealt_to_all_in_the_order_of_the_config() -> None:
    parts = [host_share(CONFIG, SMALL, number, 1).parts for number in range(4)]
    parts += [host_share(CONFIG, BIG, number, 1).parts for number in range(2)]
    assert parts == [(0,), (1,), (2,), (3,), (4, 5), (6, 7)]
    assert host_share(CONFIG, BIG, 0, 1).num_parts == 8


def test_of_two_hosts_each_is_dealt_to_its_half() -> None:
    parts = [host_share(CONFIG, SMALL, number, 2).parts for number in range(2)]
    assert [*parts, host_share(CONFIG, BIG, 0, 2).parts] == [(0,), (1,), (2, 3)]
    assert host_share(CONFIG, SMALL, 0, 2).num_parts == 4


def test_what_does_not_divide_leaves_room_for_the_fuller_host() -> None:
    assert host_share(CONFIG, SMALL, 1, 3).num_parts == 2 + 2


def test_a_model_has_as_many_places_as_an_even_spread_needs() -> None:
    assert [num_places(SMALL, num_hosts) for num_hosts in (0, 1, 2, 3, 4, 9)] == [4, 4, 2, 2, 1, 1]
    assert num_places(STAGES.models[0], 1) == 4


def test_the_stages_of_all_replicas_are_dealt_out() -> None:
    (model,) = STAGES.models
    assert [host_share(STAGES, model, number, 1).parts for number in range(4)] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [host_share(STAGES, model, number, 3).parts for number in range(2)] == [(0, 1), (2, 3)]
