"""The process groups of one rank: its tensor-parallel group, and the pipe to the neighbouring stages.

Over gloo between CPUs, over NCCL between GPUs; what else there is for one host comes in from outside.

Groups are objects of their own, without torch.distributed's global default group, so that a rank can be in several
generations one after the other and several ranks can be threads of one process. Every wait has an end: the timeout, or,
in a pipe, that of the other rank or of the driver.
"""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import AllreduceOptions, Backend, PrefixStore, Store, TCPStore, Work

from parallel.host_staging import StagedGroup
from parallel.layout import RankLayout
from parallel.preflight_facts import Transport
from parallel.tensor_group import PointToPoint, Sending, TensorGroup

_CPU = torch.device("cpu")
#: torch's watchdog of NCCL may be held up by the loading of a model for so long.
_LEAST_HEARTBEAT_S = 120
#: The longest wait for a neighbouring stage, whose honest step may take any time.
_NO_END = timedelta(days=30)


STORE_CONNECT_S = 30.0


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
    return _connect_store(host, port, timeout_s, listener.detach())


def reach_store(host: str, port: int, generation: int, timeout_s: float) -> Store:
    """The driver's store, seen from a rank of this generation of the group."""
    return PrefixStore(f"generation{generation}", _connect_store(host, port, timeout_s))


def _connect_store(host: str, port: int, timeout_s: float, listener: int | None = None) -> TCPStore:
    """`timeout_s` is for what is asked of it. Connecting has longer: torch looks up the address' name, to log it, which
    takes 10 s where no name server answers."""
    patience = timedelta(seconds=max(timeout_s, STORE_CONNECT_S))
    store = TCPStore(
        host, port, None, listener is not None, patience, wait_for_workers=False, master_listen_fd=listener
    )
    store.set_timeout(timedelta(seconds=timeout_s))
    return store


class TorchGroup:
    """A tensor group over one of torch's own process groups: gloo (CPU) or NCCL (each rank on a GPU of its own).

    With NCCL a call returns when the work is queued on the device. Then the time limit is torch's watchdog's, which
    ends the process.
    """

    def __init__(self, group: Backend, progress: Progress) -> None:
        self._group: Any = group  # torch declares only a part of its methods
        self._progress = progress
        self.rank, self.size = group.rank(), group.size()
        self._sum = AllreduceOptions()
        self._limit: tuple[timedelta, ...] = ()  # of a wait; none: the group's own
        self._sum.asyncOp = False  # on the stream that computes, without a detour over NCCL's own

    def all_reduce(self, part: torch.Tensor) -> torch.Tensor:
        """See `TensorGroup`."""
        part = part.contiguous()
        with self.begin("all_reduce"):
            self._group.allreduce([part], self._sum).wait()
        return part

    def all_gather(self, part: torch.Tensor) -> list[torch.Tensor]:
        """See `TensorGroup`."""
        parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with self.begin("all_gather"):
            self._group.allgather([parts], [part.contiguous()]).wait()
        return parts

    def gather(self, part: torch.Tensor) -> list[torch.Tensor] | None:
        """See `TensorGroup`."""
        options = dist.GatherOptions()
        options.rootRank = 0
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)] if self.rank == 0 else None
        with self.begin("gather"):
            self._group.gather([parts] if parts else [], [part], options).wait()
        return parts

    def send(self, tensor: torch.Tensor, peer: int) -> Sending:
        """See `PointToPoint`."""
        tensor = tensor.contiguous()
        what = f"send to part {peer}"
        with self.begin(what):
            return _Sending(self, what, self._group.send([tensor], peer, 0), tensor)

    def receive(self, tensor: torch.Tensor, peer: int) -> None:
        """See `PointToPoint`."""
        with self.begin(f"receive from part {peer}"):
            self._group.recv([tensor], peer, 0).wait(*self._limit)

    def wait_without_end(self) -> None:
        """See `PointToPoint`."""
        if isinstance(self._group, dist.ProcessGroupGloo):
            self._limit = (_NO_END,)
        else:
            self._group._set_default_timeout(_NO_END)  # told to `wait`, the host would wait for its device

    def abort(self) -> None:
        """See `TensorGroup`. gloo can not: its waits end when the other process, or its end of the group, is gone.

        So who is freed should let go of its groups, which frees those that wait for it.
        """
        self._group.abort()

    def finish(self, what: str, work: Work) -> None:
        """Until it is done, or queued on the device. Raises `CollectiveFailed`."""
        with self.begin(what):
            work.wait(*self._limit)

    @contextmanager
    def begin(self, what: str) -> Iterator[None]:
        """Within, a collective is begun or waited for. Raises `CollectiveFailed`: both fail when a peer is gone."""
        self._progress.collective += 1
        self._progress.inside = what
        try:
            yield
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            raise CollectiveFailed(f"{what} (number {self._progress.collective})", why) from None
        self._progress.inside = ""


@dataclass(frozen=True)
class _Sending:
    """`Sending`, and the tensor, which must live as long."""

    group: TorchGroup
    what: str
    work: Work
    tensor: torch.Tensor

    def wait(self) -> None:
        """See `Sending`."""
        self.group.finish(self.what, self.work)


class GroupPipe:
    """`parallel.stage_cut.StagePipe` in the group of the ranks that hold the same part of each stage.

    Sending does not wait until the next stage takes it; the next `send` does. A stage may compute for as long as it
    likes while its neighbours wait: the driver tells whether it moves.
    """

    def __init__(self, group: PointToPoint) -> None:
        group.wait_without_end()
        self._group = group
        self._sending: Sending | None = None

    def receive(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `StagePipe`."""
        self._group.receive(hidden, self._group.rank - 1)
        return hidden

    def send(self, hidden: torch.Tensor) -> None:
        """See `StagePipe`."""
        if self._sending is not None:
            self._sending.wait()
        self._sending = self._group.send(hidden, self._group.rank + 1)


@dataclass(frozen=True)
class RankGroups:
    """What one rank of a grid speaks through; None where the grid is one wide."""

    tensor: TensorGroup | None
    mates: PointToPoint | None  #: the ranks of its stage, where they can send to each other
    column: PointToPoint | None  #: the ranks that hold the same part in every stage

    @property
    def pipe(self) -> GroupPipe | None:
        """To the neighbouring stages."""
        return None if self.column is None else GroupPipe(self.column)

    def abort(self) -> None:
        """End what is under way: a rank that leaves must not wait for one that is gone."""
        for group in (self.mates or self.tensor, self.column):
            if group is not None:
                group.abort()


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
    transport: Transport = Transport.GLOO,
    device: torch.device = _CPU,
    join_tensor_group: JoinTensorGroup | None = None,
) -> RankGroups:
    """Meet the other ranks; returns when all are there. `store` is of one generation (`PrefixStore`).

    `transport` is the same at all ranks, `device` the one whose tensors will go. `join_tensor_group` makes tensor
    groups by another way: the same one at all ranks of a stage.
    """
    position = layout.position(rank)

    def group(name: str, index: int, size: int) -> TorchGroup | StagedGroup:
        own = PrefixStore(name, store)
        if transport is Transport.NCCL:
            return TorchGroup(join_nccl(own, index, size, device, timeout_s), progress)
        gloo = TorchGroup(join_gloo(own, index, size, host, timeout_s), progress)
        return StagedGroup(gloo, device) if transport is Transport.STAGED else gloo

    tensor: TensorGroup | None = None
    mates: TorchGroup | StagedGroup | None = None
    column: TorchGroup | StagedGroup | None = None
    stage = f"stage{position.pp_rank}"
    if layout.tensor_parallel > 1 and join_tensor_group is not None:
        tensor = join_tensor_group(PrefixStore(stage, store), position.tp_rank, layout.tensor_parallel)
    elif layout.tensor_parallel > 1:
        tensor = mates = group(stage, position.tp_rank, layout.tensor_parallel)
    if layout.pipeline_parallel > 1:
        column = group(f"column{position.tp_rank}", position.pp_rank, layout.pipeline_parallel)
    return RankGroups(tensor, mates, column)


def join_gloo(store: Store, index: int, size: int, host: str, timeout_s: float) -> Backend:
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname=host)]
    options._timeout = timedelta(seconds=timeout_s)
    options._threads = 1
    group: Backend = gloo(store, index, size, options)
    return group


def join_nccl(store: Store, index: int, size: int, device: torch.device, timeout_s: float) -> Backend:
    """Connected at once: what is wrong shows here, and sends go over this one communicator."""
    from torch._C._distributed_c10d import ProcessGroupNCCL  # builds for CPUs have none

    options = ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=timeout_s)
    group = ProcessGroupNCCL(store, index, size, options)
    group.eager_connect_single_device(device)
    return group


def addresses_by_interface() -> dict[str, list[str]]:
    """Of this host's network."""
    return {name: [entry.address for entry in entries] for name, entries in psutil.net_if_addrs().items()}


def nccl_environment(address: str, timeout_s: float, interfaces: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """What NCCL and torch's use of it read from the environment; for a rank that the others reach at `address`.

    `interfaces`: addresses by network interface. NCCL's own choice among them is often one that no other host reaches.
    """
    names = [name for name, addresses in interfaces.items() if address in addresses]
    return {
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",  # what fails or takes too long ends the process, and waits for nobody
        "TORCH_NCCL_BLOCKING_WAIT": "0",  # the host queues ahead; it waits for its device once a step
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(max(_LEAST_HEARTBEAT_S, int(timeout_s))),
        **({"NCCL_SOCKET_IFNAME": f"={names[0]}"} if names else {}),
    }
