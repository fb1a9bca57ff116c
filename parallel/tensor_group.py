"""What the sharded layers ask of their tensor-parallel group, and the group that is not there yet.

A model is cut, filled, probed and packed before its rank has peers. Until then its layers speak to a `Rehearsal`,
which gives results of the right shape; `GroupLink` is where the true group takes its place.
"""

from typing import Protocol

import torch


class TensorGroup(Protocol):
    """The ranks that hold the parts of one stage's tensors. All calls are collective and in the same order."""

    rank: int
    size: int

    def all_reduce(self, part: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, the same at each; `part` may be overwritten with it."""

    def all_gather(self, part: torch.Tensor) -> list[torch.Tensor]:
        """The parts of all ranks, in order; they have one shape."""

    def gather(self, part: torch.Tensor) -> list[torch.Tensor] | None:
        """The same at rank 0 alone; None at the others."""

    def abort(self) -> None:
        """A rank is lost: end what is under way, and wait for nobody. From any thread."""


class Sending(Protocol):
    """A tensor under way."""

    def wait(self) -> None:
        """Until it may be overwritten."""


class PointToPoint(Protocol):
    """A group whose ranks can send to each other."""

    rank: int
    size: int

    def send(self, tensor: torch.Tensor, peer: int) -> Sending:
        """To that rank of the group, which must receive."""

    def receive(self, tensor: torch.Tensor, peer: int) -> None:
        """Fill the tensor with what that rank of the group sends."""

    def wait_without_end(self) -> None:
        """From now on a send or receive waits until the other rank takes part, or is gone."""

    def abort(self) -> None:
        """See `TensorGroup`."""


class Rehearsal:
    """Every rank of the group says what this one says, without talking."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def all_reduce(self, part: torch.Tensor) -> torch.Tensor:
        """See `TensorGroup`."""
        return part

    def all_gather(self, part: torch.Tensor) -> list[torch.Tensor]:
        """See `TensorGroup`."""
        return [part] * self.size

    def gather(self, part: torch.Tensor) -> list[torch.Tensor] | None:
        """See `TensorGroup`."""
        return self.all_gather(part) if self.rank == 0 else None

    def abort(self) -> None:
        """See `TensorGroup`."""


class GroupLink:
    """Shared by all sharded layers of a rank: through it they find their group."""

    def __init__(self, rank: int, size: int) -> None:
        self.group: TensorGroup = Rehearsal(rank, size)
