"""SimulatedReplica: the real scheduler around an executor that takes time and computes nothing.

It does what `engine.engine_loop` and `deployments.replica_server` do, on simulated time: orders are obeyed between
steps, tokens leave when the step ends, and a report goes out when something was accepted, when what is free has
changed, and with every heartbeat.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cluster.frames import ReplicaInfo, Report
from deployments.simulation.cost_model import EOS_TOKEN_ID, CostModel, contents
from deployments.simulation.event_queue import EventQueue
from deployments.simulation.workload import FILLER_TOKEN_ID
from engine.request import EngineLoad, GenerateRequest, TokenChunk
from engine.scheduler import Scheduler
from engine.step import SampledToken, StepPlan, StepResult

HEARTBEAT_S = 0.1
Order = tuple[GenerateRequest | None, str]  #: a request to add, or the id of one to abort


class NullExecutor:
    """Samples filler until a sequence has as many output tokens as its `sampling.seed` says, then the end."""

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}  # known tokens at which the next one is the last

    def execute(self, plan: StepPlan) -> StepResult:
        """One token for each sequence that samples."""
        ends = self._ends
        for sequence_id in plan.dropped_ids:
            del ends[sequence_id]
        for new in plan.new_sequences:
            ends[new.sequence_id] = new.num_prompt_tokens + new.sampling.seed - 1
        sampled = []
        for item in plan.scheduled:
            if item.samples:
                is_last = item.start + item.num_tokens >= ends[item.sequence_id]
                sampled.append(SampledToken(item.sequence_id, EOS_TOKEN_ID if is_last else FILLER_TOKEN_ID))
        return StepResult(plan.step, sampled)

    def close(self) -> None:
        """Forget everything."""
        self._ends.clear()


@dataclass(slots=True)
class Usage:
    """What a replica did since it started, for the metrics."""

    busy_s: float = 0.0
    num_decode_tokens: int = 0
    num_prefill_tokens: int = 0


class SimulatedReplica:
    """One engine. `on_chunks(replica, chunks)` and `on_report(replica, report)` are called as things happen."""

    def __init__(
        self,
        info: ReplicaInfo,
        cost: CostModel,
        queue: EventQueue,
        on_chunks: Callable[["SimulatedReplica", list[TokenChunk]], None],
        on_report: Callable[["SimulatedReplica", Report], None],
        report_every_s: float | None = None,
    ) -> None:
        """`report_every_s`: report so often and not otherwise, which no real replica does."""
        self.info = info
        self.slowness = 1.0  #: each step takes so many times what the cost model says
        self.usage = Usage()
        self.is_alive = True
        self.scheduler = Scheduler(cost.engine_config(), info.engine)
        self._cost, self._queue = cost, queue
        self._on_chunks, self._on_report = on_chunks, on_report
        self._executor = NullExecutor()
        self._orders: list[Order] = []
        self._accepted: list[tuple[str, int]] = []
        self._reported: tuple[int, int] = (-1, -1)
        self._is_computing = False
        self._reports_changes = report_every_s is None
        self._heartbeat_s = report_every_s or HEARTBEAT_S

    def start(self) -> None:
        """Report for the first time, then with every heartbeat."""
        self._heartbeat(None)

    def submit(self, request: GenerateRequest) -> None:
        """Take a request in before the next step."""
        self._order((request, request.request_id))

    def cancel(self, request_id: str) -> None:
        """Drop a request before the next step."""
        self._order((None, request_id))

    def die(self) -> list[TokenChunk]:
        """End at once. Returns the last chunk of each request that was here: its index is what it had emitted."""
        self.is_alive = False
        waiting = [
            TokenChunk(request.request_id, request.attempt, len(request.output_token_ids), [])
            for request, _ in self._orders
            if request is not None
        ]
        return waiting + self.scheduler.hand_back()

    def _order(self, order: Order) -> None:
        if self.is_alive:
            self._orders.append(order)
            if not self._is_computing:
                self._begin_step()

    def _begin_step(self) -> None:
        self._obey_orders()
        plan = self.scheduler.schedule(self._queue.now)
        self._is_computing = plan is not None
        if plan is None:
            return
        result = self._executor.execute(plan)
        step = contents(plan)
        seconds = self._cost.seconds(step) * self.slowness
        usage = self.usage
        usage.busy_s += seconds
        usage.num_decode_tokens += step[0]
        usage.num_prefill_tokens += step[1]
        self._queue.after(seconds, self._end_step, result)

    def _end_step(self, result: StepResult) -> None:
        if not self.is_alive:
            return
        chunks = self.scheduler.update(result)
        self._on_chunks(self, chunks)
        self._report_changes(self.scheduler.load())
        self._begin_step()

    def _obey_orders(self) -> None:
        if not self._orders:
            return
        orders, self._orders = self._orders, []
        for request, request_id in orders:
            if request is None:
                self.scheduler.abort(request_id)
            else:
                self._on_chunks(self, self.scheduler.add(request, self._queue.now))
                self._accepted.append((request_id, request.attempt))
        self._report_changes(self.scheduler.load())

    def _report_changes(self, load: EngineLoad) -> None:
        if self._reports_changes and (self._accepted or (load.free_slots, load.free_blocks) != self._reported):
            self._report(load)

    def _report(self, load: EngineLoad) -> None:
        self._reported = (load.free_slots, load.free_blocks)
        self._on_report(self, Report(load, self._accepted))
        self._accepted = []

    def _heartbeat(self, _: None) -> None:
        if self.is_alive:
            self._report(self.scheduler.load())
            self._queue.after(self._heartbeat_s, self._heartbeat, None)
