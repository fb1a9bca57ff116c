"""A tensor-parallel group of processes of one host that share memory: a sum takes microseconds, over TCP hundreds.

The memory has no name: its first rank makes it, the others open it through that process, and it is gone with the last.
"""

import mmap
import os
from pathlib import Path

import numpy as np
import torch
from torch._C._distributed_c10d import Store

from engine.kernels.library import Kernels, thread_count
from parallel.process_group import CollectiveFailed, Progress

_DTYPES = (torch.bfloat16, torch.float32)
_ABORTED = -1  # kAborted in native/shared_group.h


class SharedMemoryGroup:
    """`parallel.tensor_group.TensorGroup` over shared memory; sums are made in float32, the same bits at each rank."""

    def __init__(
        self, kernels: Kernels, memory: mmap.mmap, *, rank: int, size: int, timeout_s: float, progress: Progress
    ) -> None:
        self.rank, self.size = rank, size
        self._library = kernels.library
        self._memory = np.frombuffer(memory, dtype=np.uint8)
        self._address = self._memory.ctypes.data
        self._timeout_s = timeout_s
        self._timeout_ms = int(timeout_s * 1000)
        self._progress = progress

    @property
    def seat(self) -> tuple[int, int, int, int]:
        """For kernels that sum by themselves: the memory's address, rank, size, timeout in ms."""
        return self._address, self.rank, self.size, self._timeout_ms

    def all_reduce(self, part: torch.Tensor) -> torch.Tensor:
        """See `TensorGroup`."""
        if part.dtype not in _DTYPES:
            return torch.stack(self.all_gather(part)).float().sum(0).to(part.dtype)
        part = part.contiguous()
        self.begin("all_reduce")
        late = self._library.manta_shared_all_reduce(
            thread_count(), int(part.dtype is torch.bfloat16), self._address, self.rank, self.size,
            part.data_ptr(), part.numel(), self._timeout_ms,
        )  # fmt: skip
        self.end(late)
        return part

    def all_gather(self, part: torch.Tensor) -> list[torch.Tensor]:
        """See `TensorGroup`."""
        self.begin("all_gather")
        return self._gather(part)

    def gather(self, part: torch.Tensor) -> list[torch.Tensor] | None:
        """See `TensorGroup`."""
        self.begin("gather")
        if self.rank == 0:
            return self._gather(part)
        part = part.contiguous()
        self.end(
            self._library.manta_shared_gather(
                self._address, self.rank, self.size, part.data_ptr(), None, part.nbytes, self._timeout_ms
            )
        )
        return None

    def _gather(self, part: torch.Tensor) -> list[torch.Tensor]:
        part = part.contiguous()
        parts = torch.empty((self.size, *part.shape), dtype=part.dtype)
        self.end(
            self._library.manta_shared_gather(
                self._address, self.rank, self.size, part.data_ptr(), parts.data_ptr(), part.nbytes, self._timeout_ms
            )
        )
        return list(parts)

    def begin(self, what: str) -> None:
        """A collective begins; `end` must follow."""
        self._progress.collective += 1
        self._progress.inside = what

    def end(self, late: int) -> None:
        """It has ended: 0, or 1 + the rank that has not come, or `_ABORTED`."""
        if late:
            what = f"{self._progress.inside} (number {self._progress.collective})"
            why = f"part {late - 1} of the stage has not come within {self._timeout_s:g} s"
            raise CollectiveFailed(what, "the group was aborted" if late == _ABORTED else why)
        self._progress.inside = ""

    def abort(self) -> None:
        """See `TensorGroup`."""
        self._library.manta_shared_abort(self._address)


def join_shared_memory(
    kernels: Kernels, store: Store, rank: int, size: int, *, timeout_s: float, progress: Progress
) -> SharedMemoryGroup:
    """Meet the group's other ranks, all on this host; `store` is the group's own."""
    num_bytes = kernels.library.manta_shared_bytes(size)
    if not num_bytes:
        raise ValueError(f"{size} ranks are more than share memory")
    if rank == 0:
        memory = os.memfd_create("manta-ranks")
        os.ftruncate(memory, num_bytes)
        store.set("memory", f"{os.getpid()} {memory}")
    else:
        pid, number = store.get("memory").decode().split()
        memory = os.open(Path(f"/proc/{pid}/fd/{number}"), os.O_RDWR)
    shared = mmap.mmap(memory, num_bytes)
    store.set(f"mapped{rank}", "")
    if rank == 0:
        store.wait([f"mapped{other}" for other in range(size)])
    os.close(memory)
    return SharedMemoryGroup(kernels, shared, rank=rank, size=size, timeout_s=timeout_s, progress=progress)
