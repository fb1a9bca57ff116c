"""The step of an engine: schedule, execute, update."""

from typing import Protocol

from engine.request import TokenChunk
from engine.scheduler import Scheduler
from engine.step import StepPlan, StepResult
from engine.step_progress import StepProgress


class StepExecutor(Protocol):
    """Computes plans in the order it gets them, on one or many ranks."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute one step. Any exception means that the executor is of no more use."""

    def close(self) -> None:
        """Give back memory, processes and sockets; also after an exception."""


class EngineCore:
    """A scheduler and the executor of its plans. An executor of long steps ticks the same `progress`."""

    def __init__(self, scheduler: Scheduler, executor: StepExecutor, progress: StepProgress | None = None) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.progress = progress or StepProgress()

    def step(self, now: float) -> list[TokenChunk] | None:
        """Compute one step; None when there was nothing to compute."""
        plan = self.scheduler.schedule(now)
        if plan is None:
            return None
        self.progress.begin_step()
        result = self.executor.execute(plan)
        self.progress.tick()
        return self.scheduler.update(result)
