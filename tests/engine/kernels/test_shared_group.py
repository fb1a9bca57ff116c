"""Collectives over shared memory: the sums and parts that they should give, for sizes over and under a buffer."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from engine.kernels.library import Kernels, load_kernels
from engine.kernels.shared_group import SharedMemoryGroup, join_shared_memory
from parallel.process_group import CollectiveFailed, Progress

KERNELS = load_kernels()
pytestmark = pytest.mark.skipif(KERNELS is None, reason="no kernels on this machine")
TIMEOUT_S = 20.0


def together(size: int, work: Callable[[SharedMemoryGroup], Any], timeout_s: float = TIMEOUT_S) -> list[Any]:
    """What `work` gives at each rank of a group of threads; an exception in the place of its result."""
    store = dist.HashStore()
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        assert isinstance(KERNELS, Kernels)
        try:
            group = join_shared_memory(KERNELS, store, rank, size, timeout_s=timeout_s, progress=Progress())
            results[rank] = work(group)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def part_of(rank: int, step: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(count, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_all_have_the_same_sum(size: int, dtype: torch.dtype) -> None:
    counts = [1, 15, 17, 896, 32 * 896, 200_003]

    def work(group: SharedMemoryGroup) -> list[torch.Tensor]:
        return [group.all_reduce(part_of(group.rank, i, n, dtype)) for i, n in enumerate(counts)]

    first, *others = together(size, work)
    for index, count in enumerate(counts):
        expected = sum(part_of(rank, index, count, dtype).float() for rank in range(size))
        assert torch.equal(first[index], torch.as_tensor(expected).to(dtype))
        assert all(torch.equal(first[index], other[index]) for other in others)


def test_parts_are_gathered_at_all_or_at_the_first_in_any_order_of_calls() -> None:
    counts = [3, 70_000, 1, 300_000]

    def work(group: SharedMemoryGroup) -> list[Any]:
        answers: list[Any] = []
        for step in range(40):
            part = part_of(group.rank, step, counts[step % 4], torch.float32)
            kind = (group.gather, group.gather, group.all_gather, group.all_reduce)[step % 7 % 4]
            answers.append(kind(part))
        return answers

    results = together(3, work)
    for step in range(40):
        parts = [part_of(rank, step, counts[step % 4], torch.float32) for rank in range(3)]
        kind = step % 7 % 4
        for rank, answers in enumerate(results):
            if kind == 3:
                assert torch.equal(answers[step], parts[0] + parts[1] + parts[2])
            elif kind < 2 and rank:
                assert answers[step] is None
            else:
                assert all(torch.equal(one, other) for one, other in zip(answers[step], parts, strict=True))


def test_who_does_not_come_is_named_in_time() -> None:
    def work(group: SharedMemoryGroup) -> Any:
        return None if group.rank == 1 else group.all_reduce(torch.ones(8))

    first, second, third = together(3, work, timeout_s=0.3)
    assert second is None
    for error in (first, third):
        assert isinstance(error, CollectiveFailed)
        assert str(error) == "all_reduce (number 1): part 1 of the stage has not come within 0.3 s"


def test_a_group_that_is_aborted_frees_who_waits_and_who_will() -> None:
    """Long before the timeout."""

    def work(group: SharedMemoryGroup) -> Any:
        if group.rank == 2:
            group.abort()
            return None
        errors = []
        for collective in (group.all_reduce, group.all_gather):
            with pytest.raises(CollectiveFailed) as raised:
                collective(torch.ones(8))
            errors.append(str(raised.value))
        return errors

    first, second, third = together(3, work, timeout_s=3600.0)
    assert (
        first
        == second
        == [f"{name}: the group was aborted" for name in ("all_reduce (number 1)", "all_gather (number 2)")]
    )
    assert third is None
