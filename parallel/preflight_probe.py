"""Measures how fast a rank computes and reaches the others; all ranks of a grid call it together.

Links are measured pair by pair, as many pairs at once as there are; each takes a few milliseconds.
"""

import time
from collections.abc import Callable, Iterator

import torch

from parallel.layout import RankLayout
from parallel.preflight_speeds import LinkSpeed, RankSpeeds
from parallel.process_group import RankGroups
from parallel.tensor_group import PointToPoint, TensorGroup

_SMALL_BYTES, _LARGE_BYTES = 4 << 10, 1 << 20
_SMALL_TIMES, _LARGE_TIMES = 20, 4
#: Width of the square matrices and how often they are multiplied: some ten milliseconds.
_WORK = {"cpu": (384, 24), "cuda": (4096, 32)}


def measure_rank(
    groups: RankGroups, layout: RankLayout, rank: int, device: torch.device, *, measures_mates: bool
) -> RankSpeeds:
    """What this rank sees. `measures_mates`: also its links inside its stage, where these exist."""
    position = layout.position(rank)
    small, large = (torch.ones(size // 4, device=device) for size in (_SMALL_BYTES, _LARGE_BYTES))
    settle = torch.cuda.synchronize if device.type == "cuda" else _nothing
    sums = [_time_sum(groups.tensor, data, times, settle) for data, times in _sizes(small, large)]
    work_s = _time_work(device, settle)
    links: list[LinkSpeed] = []
    if groups.mates is not None and measures_mates:
        for peer in opponents(groups.mates.rank, groups.mates.size):
            links += _time_link(groups.mates, peer, layout.rank_at(position.pp_rank, peer), small, large, settle)
    if groups.column is not None:
        for peer in neighbours(groups.column.rank, groups.column.size):
            links += _time_link(groups.column, peer, layout.rank_at(peer, position.tp_rank), small, large, settle)
    return RankSpeeds(work_s=work_s, sum_small_s=sums[0], sum_large_s=sums[1], links=links)


def _nothing() -> None:
    pass


def _sizes(small: torch.Tensor, large: torch.Tensor) -> tuple[tuple[torch.Tensor, int], ...]:
    return (small, _SMALL_TIMES), (large, _LARGE_TIMES)


def _time_sum(group: TensorGroup | None, data: torch.Tensor, times: int, settle: Callable[[], None]) -> float:
    if group is None:
        return 0.0
    return _shortest(lambda: group.all_reduce(data.fill_(1.0)), times, settle)


def _time_work(device: torch.device, settle: Callable[[], None]) -> float:
    """Seconds of all of it, not of the best part: who shares a core is slow on average."""
    width, times = _WORK[device.type]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    matrix = torch.full((width, width), 1 / width, dtype=dtype, device=device)
    matrix @ matrix
    settle()
    started = time.perf_counter()
    for _ in range(times):
        matrix @ matrix
    settle()
    return time.perf_counter() - started


def _time_link(
    group: PointToPoint, peer: int, peer_rank: int, small: torch.Tensor, large: torch.Tensor, settle: Callable[[], None]
) -> list[LinkSpeed]:
    """To and fro; the lower of the two knows the result."""
    is_first = group.rank < peer

    def turn(data: torch.Tensor) -> None:
        if is_first:
            group.send(data, peer).wait()
            group.receive(data, peer)
        else:
            group.receive(data, peer)
            group.send(data, peer).wait()

    there_and_back = [_shortest(lambda data=data: turn(data), times, settle) for data, times in _sizes(small, large)]  # type: ignore[misc]
    return [LinkSpeed(peer_rank, there_and_back[0] / 2, 2 * _LARGE_BYTES / there_and_back[1])] if is_first else []


def _shortest(call: Callable[[], object], times: int, settle: Callable[[], None]) -> float:
    """Of so many; the first one, which may set things up, does not count."""
    seconds = []
    for _ in range(times + 1):
        started = time.perf_counter()
        call()
        settle()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def opponents(index: int, size: int) -> Iterator[int]:
    """Everybody else, in rounds in which all meet in pairs (one rests, if they are odd)."""
    num_moving = size - 1 + size % 2  # of an even number the last one meets who would meet itself
    for total in range(num_moving):
        opponent = (total - index) % num_moving
        if index == num_moving:
            opponent = total * (num_moving + 1) // 2 % num_moving
        elif opponent == index and size % 2 == 0:
            opponent = num_moving
        if opponent != index:
            yield opponent


def neighbours(index: int, size: int) -> Iterator[int]:
    """Those before and behind, in two rounds of pairs."""
    for parity in (0, 1):
        peer = index + 1 if index % 2 == parity else index - 1
        if 0 <= peer < size:
            yield peer
