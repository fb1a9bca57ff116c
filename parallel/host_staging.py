"""A group for GPU tensors over a group for CPU tensors: each goes through pinned memory of the host.

Slow, but works where several ranks share a GPU, which NCCL refuses.
"""

from typing import Protocol

import torch

from parallel.tensor_group import PointToPoint, Sending, TensorGroup


class HostGroup(TensorGroup, PointToPoint, Protocol):
    """All that a group between CPUs can do."""


class StagedGroup:
    """`TensorGroup` and `PointToPoint` for tensors on `device`."""

    def __init__(self, inner: HostGroup, device: torch.device) -> None:
        self._inner = inner
        self._pins = device.type == "cuda"
        self.rank, self.size = inner.rank, inner.size

    def all_reduce(self, part: torch.Tensor) -> torch.Tensor:
        """See `TensorGroup`."""
        return part.copy_(self._inner.all_reduce(self._down(part)))

    def all_gather(self, part: torch.Tensor) -> list[torch.Tensor]:
        """See `TensorGroup`."""
        return [other.to(part.device) for other in self._inner.all_gather(self._down(part))]

    def gather(self, part: torch.Tensor) -> list[torch.Tensor] | None:
        """See `TensorGroup`."""
        parts = self._inner.gather(self._down(part))
        return None if parts is None else [other.to(part.device) for other in parts]

    def send(self, tensor: torch.Tensor, peer: int) -> Sending:
        """See `PointToPoint`."""
        return self._inner.send(self._down(tensor), peer)

    def receive(self, tensor: torch.Tensor, peer: int) -> None:
        """See `PointToPoint`."""
        host = self._host_tensor(tensor)
        self._inner.receive(host, peer)
        tensor.copy_(host)

    def wait_without_end(self) -> None:
        """See `PointToPoint`."""
        self._inner.wait_without_end()

    def abort(self) -> None:
        """See `PointToPoint`."""
        self._inner.abort()

    def _down(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy in the host's memory, complete when this returns."""
        return self._host_tensor(tensor).copy_(tensor)

    def _host_tensor(self, like: torch.Tensor) -> torch.Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=self._pins)
