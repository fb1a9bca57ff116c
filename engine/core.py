"""The step of an engine: schedule, execute, update."""

from abc import abstractmethod
from typing import Protocol

from engine.config import EngineInfo
from engine.errors import RankLost
from engine.request import TokenChunk
from engine.scheduler import Scheduler
from engine.step import StepPlan, StepResult
from engine.step_progress import StepProgress


class StepExecutor(Protocol):
    """Computes plans in the order it gets them, on one or many ranks. After any exception it is of no more use."""

    def submit(self, plan: StepPlan) -> None:
        """Take a plan; up to `EngineInfo.max_steps_in_flight` may be without a result."""

    def collect(self) -> StepResult:
        """Wait for the result of the oldest plan without one."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute one step while no other is under way."""

    def close(self) -> None:
        """Give back memory, processes and sockets; also after an exception."""


class InlineExecutor:
    """A `StepExecutor` that computes one step at a time, in the thread that asks for its result."""

    _submitted: StepPlan

    def submit(self, plan: StepPlan) -> None:
        """See `StepExecutor`."""
        self._submitted = plan

    def collect(self) -> StepResult:
        """See `StepExecutor`."""
        return self.execute(self._submitted)

    @abstractmethod
    def execute(self, plan: StepPlan) -> StepResult:
        """See `StepExecutor`."""


class Rebuilder(Protocol):
    """Makes an executor whole again that has raised `RankLost`."""

    def look(self) -> None:
        """Between two steps: raises `RankLost` when a rank has ended."""

    def may_begin(self, now: float) -> bool:
        """Whether it is worth it (again)."""

    def rebuild(self, lost: RankLost) -> EngineInfo:
        """What the engine now is, its KV cache empty. Any exception is the engine's end."""


class EngineCore:
    """A scheduler and the executor of its plans. An executor of long steps ticks the same `progress`."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: StepExecutor,
        progress: StepProgress | None = None,
        rebuilder: Rebuilder | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.progress = progress or StepProgress()
        self.rebuilder = rebuilder

    def step(self, now: float) -> list[TokenChunk] | None:
        """Put under way what can be, and take in the oldest result; None when there was nothing to compute."""
        self.submit(now)
        return self.collect()

    def submit(self, now: float) -> None:
        """Put under way what can be."""
        while (plan := self.scheduler.schedule(now)) is not None:
            self.progress.begin_step()
            self.executor.submit(plan)

    def collect(self) -> list[TokenChunk] | None:
        """Wait for the oldest result and take it in; None when nothing is under way."""
        if not self.scheduler.num_in_flight:
            return None
        result = self.executor.collect()
        self.progress.tick()
        return self.scheduler.update(result)
