"""The process groups of one rank: its tensor-parallel group, and the pipe to the neighbouring stages.

Groups are objects of their own, without torch.distributed's global default group, so that a rank can be in several
generations one after the other and several ranks can be threads of one process. Every wait has an end: the timeout.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from parallel.layout import RankLayout
from parallel.tensor_group import TensorGroup


class CollectiveFailed(RuntimeError):
    """A collective ended in an error or waited longer than the group's timeout: a peer has died or hangs."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what, why)
        self.what, self.why = what, why

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


@dataclass
class Progress:
    """How far a rank has come; written by its computing thread, read by the one that reports."""

    step: int = 0
    collective: int = 0  #: number of the last collective that was begun
    inside: str = ""  #: name of the collective that is waited for; empty between collectives


def listen_store(host: str, timeout_s: float) -> TCPStore:
    """A store on a free port of this address; the driver keeps it, the ranks meet there."""
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    # TCPStore would listen on every address of the host; handed a socket, it listens where that is bound.
    return TCPStore(
        host, port, None, True, timedelta(seconds=timeout_s), wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )  # fmt: skip


def reach_store(host: str, port: int, generation: int, timeout_s: float) -> Store:
    """The driver's store, seen from a rank of this generation of the group."""
    store = TCPStore(host, port, None, False, timedelta(seconds=timeout_s), wait_for_workers=False)
    return PrefixStore(f"generation{generation}", store)


class GlooGroup:
    """A group of CPU ranks, over gloo's TCP (`group`: a `ProcessGroupGloo`, whose methods torch does not declare)."""

    def __init__(self, group: Any, progress: Progress) -> None:
        self._group = group
        self._progress = progress
        self.rank, self.size = group.rank(), group.size()

    def all_reduce(self, part: torch.Tensor) -> torch.Tensor:
        """See `TensorGroup`."""
        part = part.contiguous()
        self._wait("all_reduce", self._group.allreduce([part]))
        return part

    def all_gather(self, part: torch.Tensor) -> list[torch.Tensor]:
        """See `TensorGroup`."""
        parts = [torch.empty_like(part) for _ in range(self.size)]
        self._wait("all_gather", self._group.allgather([parts], [part.contiguous()]))
        return parts

    def gather(self, part: torch.Tensor) -> list[torch.Tensor] | None:
        """See `TensorGroup`."""
        options = dist.GatherOptions()
        options.rootRank = 0
        parts = [torch.empty_like(part) for _ in range(self.size)] if self.rank == 0 else None
        self._wait("gather", self._group.gather([parts] if parts else [], [part.contiguous()], options))
        return parts

    def _wait(self, what: str, work: dist.Work) -> None:
        _wait(what, work, self._progress)


class GlooPipe:
    """Hidden states from the previous stage and to the next one, at the same place in their tensor groups.

    Sending does not wait until the next stage takes it; the next `send` does.
    """

    def __init__(self, group: Any, stage: int, progress: Progress) -> None:
        self._group = group
        self._stage = stage
        self._progress = progress
        self._sending: tuple[dist.Work, torch.Tensor] | None = None  # the tensor must live as long

    def receive(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `parallel.stage_cut.StagePipe`."""
        _wait("receive from the previous stage", self._group.recv([hidden], self._stage - 1, 0), self._progress)
        return hidden

    def send(self, hidden: torch.Tensor) -> None:
        """See `parallel.stage_cut.StagePipe`."""
        if self._sending is not None:
            _wait("send to the next stage", self._sending[0], self._progress)
        hidden = hidden.contiguous()
        self._sending = self._group.send([hidden], self._stage + 1, 0), hidden


@dataclass(frozen=True)
class RankGroups:
    """What one rank of a grid speaks through; None where the grid is one wide."""

    tensor: TensorGroup | None
    pipe: GlooPipe | None


#: (store of the group, rank in it, its size) -> the group, when all are there.
JoinTensorGroup = Callable[[Store, int, int], TensorGroup]


def join_groups(
    store: Store,
    layout: RankLayout,
    rank: int,
    *,
    host: str,
    timeout_s: float,
    progress: Progress,
    join_tensor_group: JoinTensorGroup | None = None,
) -> RankGroups:
    """Meet the other ranks; returns when all are there. `store` is of one generation (`PrefixStore`).

    `join_tensor_group` makes tensor groups by another way than gloo: the same one at all ranks.
    """
    position = layout.position(rank)

    gloo: Any = dist.ProcessGroupGloo

    def group(name: str, index: int, size: int) -> Any:
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=host)]
        options._timeout = timedelta(seconds=timeout_s)
        options._threads = 1
        return gloo(PrefixStore(name, store), index, size, options)

    tensor: TensorGroup | None = None
    pipe: GlooPipe | None = None
    stage = f"stage{position.pp_rank}"
    if layout.tensor_parallel > 1 and join_tensor_group is not None:
        tensor = join_tensor_group(PrefixStore(stage, store), position.tp_rank, layout.tensor_parallel)
    elif layout.tensor_parallel > 1:
        tensor = GlooGroup(group(stage, position.tp_rank, layout.tensor_parallel), progress)
    if layout.pipeline_parallel > 1:
        column = group(f"column{position.tp_rank}", position.pp_rank, layout.pipeline_parallel)
        pipe = GlooPipe(column, position.pp_rank, progress)
    return RankGroups(tensor, pipe)


def _wait(what: str, work: dist.Work, progress: Progress) -> None:
    progress.collective += 1
    progress.inside = what
    try:
        work.wait()
    except RuntimeError as error:
        raise CollectiveFailed(f"{what} (number {progress.collective})", str(error).splitlines()[0]) from None
    progress.inside = ""
