"""Groups of ranks that are threads: what they exchange arrives, also by way of the host's memory."""

import threading
import time
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from parallel.layout import RankLayout
from parallel.preflight_facts import Transport
from parallel.preflight_probe import measure_rank
from parallel.preflight_speeds import RankSpeeds
from parallel.process_group import CollectiveFailed, Progress, RankGroups, join_groups, nccl_environment

CPU = torch.device("cpu")
TIMEOUT_S = 2.0
OVER_THE_NETWORK = [Transport.GLOO, Transport.STAGED]


def in_threads(
    layout: RankLayout,
    transport: Transport,
    work: Callable[[RankGroups, int], object],
    *,
    timeout_s: float = 10.0,
    keeps: bool = True,
) -> None:
    """`work` at every rank; raises what one of them raises. What it returns, and, if `keeps`, its groups live until all
    are done."""
    store, errors = dist.HashStore(), []
    done = threading.Barrier(layout.world_size)  # whoever leaves takes what it has sent along

    def run(rank: int) -> None:
        try:
            groups = join_groups(
                store, layout, rank, host="127.0.0.1", timeout_s=timeout_s, progress=Progress(), transport=transport
            )
            kept = work(groups, rank)
            if not keeps:
                del groups
            done.wait()
            del kept
        except BaseException as error:
            errors.append(error)
            done.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(layout.world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors[:1]:
        raise error


@pytest.mark.parametrize("transport", OVER_THE_NETWORK)
def test_a_stage_sums_and_gathers(transport: Transport) -> None:
    def work(groups: RankGroups, rank: int) -> None:
        assert groups.tensor is not None and groups.column is None and groups.pipe is None
        mine = torch.full((2, 3), float(rank + 1))
        assert torch.equal(groups.tensor.all_reduce(mine.clone()), torch.full((2, 3), 6.0))
        assert torch.equal(groups.tensor.all_reduce(mine.t().clone().t()), torch.full((2, 3), 6.0))
        assert [float(part[0, 0]) for part in groups.tensor.all_gather(mine)] == [1.0, 2.0, 3.0]
        gathered = groups.tensor.gather(mine)
        assert (gathered is None) == (rank > 0)
        assert gathered is None or [float(part[1, 2]) for part in gathered] == [1.0, 2.0, 3.0]

    in_threads(RankLayout(3, 1), transport, work)


@pytest.mark.parametrize("transport", OVER_THE_NETWORK)
def test_stages_hand_on_what_they_get(transport: Transport) -> None:
    def work(groups: RankGroups, rank: int) -> object:
        assert groups.pipe is not None and groups.tensor is None
        pipe = groups.pipe
        for step in range(3):
            hidden = torch.full((4, 5), float(step))
            if rank > 0:
                hidden = pipe.receive(torch.empty(4, 5))
            if rank < 2:
                pipe.send(hidden + 1)
            else:
                assert torch.equal(hidden, torch.full((4, 5), step + 2.0))
        return pipe

    in_threads(RankLayout(1, 3), transport, work)


@pytest.mark.parametrize("transport", OVER_THE_NETWORK)
def test_all_pairs_that_speak_to_each_other_are_measured_once(transport: Transport) -> None:
    measured: dict[int, RankSpeeds] = {}
    layout = RankLayout(3, 2)

    def work(groups: RankGroups, rank: int) -> None:
        measured[rank] = measure_rank(groups, layout, rank, CPU, measures_mates=True)

    in_threads(layout, transport, work)
    pairs = sorted((rank, link.peer) for rank, speed in measured.items() for link in speed.links)
    assert pairs == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 4), (2, 5), (3, 4), (3, 5), (4, 5)]
    assert all(speed.work_s > 0 and speed.sum_small_s > 0 and speed.sum_large_s > 0 for speed in measured.values())
    assert all(link.latency_s > 0 and link.bytes_per_s > 0 for speed in measured.values() for link in speed.links)


def test_a_rank_that_leaves_ends_what_it_waits_for() -> None:
    left = threading.Event()

    def work(groups: RankGroups, rank: int) -> None:
        if rank == 0:
            groups.abort()
            left.set()
        else:
            left.wait(10.0)

    in_threads(RankLayout(2, 1), Transport.GLOO, work)


@pytest.mark.parametrize("transport", OVER_THE_NETWORK)
def test_a_stage_may_compute_for_longer_than_a_collective_may_wait(transport: Transport) -> None:
    def work(groups: RankGroups, rank: int) -> object:
        assert groups.pipe is not None
        pipe = groups.pipe
        if rank == 0:
            time.sleep(1.5 * TIMEOUT_S)
            pipe.send(torch.ones(3))
        else:
            assert torch.equal(pipe.receive(torch.empty(3)), torch.ones(3))
        return pipe

    in_threads(RankLayout(1, 2), transport, work, timeout_s=TIMEOUT_S)


def test_what_is_begun_with_a_neighbour_that_is_gone_is_a_broken_collective() -> None:
    def work(groups: RankGroups, rank: int) -> None:
        if rank == 0:
            return  # and takes its end of the group along
        assert groups.pipe is not None and groups.column is not None
        with pytest.raises(CollectiveFailed, match="receive from part 0"):
            groups.pipe.receive(torch.empty(3))
        with pytest.raises(CollectiveFailed, match="receive from part 0"):
            groups.pipe.receive(torch.empty(3))
        with pytest.raises(CollectiveFailed, match="send to part 0"):
            groups.column.send(torch.empty(3), 0).wait()

    in_threads(RankLayout(1, 2), Transport.GLOO, work, keeps=False)


def test_nccl_waits_as_long_as_it_is_told_and_uses_the_interface_that_the_others_reach() -> None:
    interfaces = {"lo": ["127.0.0.1"], "docker0": ["172.17.0.1"], "eth1": ["10.0.0.7", "fe80::1"]}
    settings = nccl_environment("10.0.0.7", 200.0, interfaces)
    assert settings["NCCL_SOCKET_IFNAME"] == "=eth1"
    assert settings["TORCH_NCCL_BLOCKING_WAIT"] == "0" and settings["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "3"
    assert int(settings["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"]) == 200
    assert "NCCL_SOCKET_IFNAME" not in nccl_environment("10.9.9.9", 1.0, interfaces)
    assert int(nccl_environment("10.9.9.9", 1.0, interfaces)["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"]) >= 60
