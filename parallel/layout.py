"""The grid of ranks that compute one model: which rank sits where, and who is its neighbour.

Rank order is stage by stage: the `tensor_parallel` ranks of stage 0 come first, then those of stage 1. So the
ranks of one stage are consecutive and land on one host when hosts are filled in order. Pure arithmetic: knows no
process group, no tensor and no host.
"""

from dataclasses import dataclass


class LayoutError(ValueError):
    """A grid that cannot be; `equation` shows the numbers that clash, `remedy` what to change."""

    def __init__(self, equation: str, remedy: str) -> None:
        super().__init__(equation, remedy)
        self.equation, self.remedy = equation, remedy

    def __str__(self) -> str:
        return f"{self.equation}: {self.remedy}"


class CannotSplit(LayoutError):
    """The architecture has no plan for this kind of parallelism, or one that is not understood."""


@dataclass(frozen=True, slots=True, order=True)
class RankPosition:
    """Where a rank sits: its pipeline stage, and its part of that stage's tensors."""

    pp_rank: int
    tp_rank: int


@dataclass(frozen=True, slots=True)
class RankLayout:
    """`pipeline_parallel` stages of `tensor_parallel` ranks each, `world_size` ranks in all."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    def __post_init__(self) -> None:
        for name, size in (
            ("tensor_parallel", self.tensor_parallel),
            ("pipeline_parallel", self.pipeline_parallel),
        ):
            if size < 1:
                raise LayoutError(f"{name} = {size} < 1", "a grid has at least one rank in each direction")

    @property
    def world_size(self) -> int:
        """Number of ranks in the grid."""
        return self.tensor_parallel * self.pipeline_parallel

    def position(self, rank: int) -> RankPosition:
        """Stage and part of `rank`."""
        self._check_rank(rank)
        return RankPosition(*divmod(rank, self.tensor_parallel))

    def rank_at(self, pp_rank: int, tp_rank: int) -> int:
        """The rank at a position; the inverse of `position`."""
        if not 0 <= pp_rank < self.pipeline_parallel:
            raise LayoutError(
                f"pp_rank = {pp_rank} is not in 0..{self.pipeline_parallel - 1}",
                f"pipeline_parallel is {self.pipeline_parallel}",
            )
        if not 0 <= tp_rank < self.tensor_parallel:
            raise LayoutError(
                f"tp_rank = {tp_rank} is not in 0..{self.tensor_parallel - 1}",
                f"tensor_parallel is {self.tensor_parallel}",
            )
        return pp_rank * self.tensor_parallel + tp_rank

    def stage_ranks(self, pp_rank: int) -> range:
        """The ranks of one stage: the members of its tensor-parallel group."""
        first = self.rank_at(pp_rank, 0)
        return range(first, first + self.tensor_parallel)

    def column_ranks(self, tp_rank: int) -> range:
        """The ranks that hold the same part in every stage, first stage first: one pipeline."""
        return range(self.rank_at(0, tp_rank), self.world_size, self.tensor_parallel)

    def is_first_stage(self, rank: int) -> bool:
        """Whether `rank` embeds tokens."""
        return self.position(rank).pp_rank == 0

    def is_last_stage(self, rank: int) -> bool:
        """Whether `rank` computes logits."""
        return self.position(rank).pp_rank == self.pipeline_parallel - 1

    def previous_rank(self, rank: int) -> int | None:
        """The rank that sends hidden states to `rank`; None on the first stage."""
        return None if self.is_first_stage(rank) else rank - self.tensor_parallel

    def next_rank(self, rank: int) -> int | None:
        """The rank that `rank` sends hidden states to; None on the last stage."""
        return None if self.is_last_stage(rank) else rank + self.tensor_parallel

    def check_world_size(self, world_size: int) -> None:
        """Raise `LayoutError` unless exactly `world_size` processes fill the grid."""
        if self.world_size != world_size:
            raise LayoutError(
                f"tensor_parallel * pipeline_parallel = {self.tensor_parallel} * {self.pipeline_parallel} "
                f"= {self.world_size} != {world_size} ranks",
                f"start {self.world_size} ranks or choose sizes whose product is {world_size}",
            )

    def _check_rank(self, rank: int) -> None:
        if not 0 <= rank < self.world_size:
            raise LayoutError(
                f"rank = {rank} is not in 0..{self.world_size - 1}",
                f"tensor_parallel * pipeline_parallel = {self.tensor_parallel} * {self.pipeline_parallel} "
                f"= {self.world_size} ranks",
            )
