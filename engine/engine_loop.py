"""The thread that runs an engine: requests come in from any thread, tokens leave by a callback once per step.

The only place of the engine's deciding half that reads a clock. Asyncio is the caller's business: `on_step` is
called on the loop's thread and hops from there.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from engine.core import EngineCore
from engine.errors import EngineDead, RequestRefused
from engine.request import EngineLoad, FinishReason, GenerateRequest, TokenChunk
from engine.step_progress import EngineProgress

logger = logging.getLogger(__name__)

OnStep = Callable[[list[TokenChunk], EngineLoad], None]
OnDead = Callable[[EngineDead], None]
Order = Callable[[float], list[TokenChunk]]  #: something for the scheduler to do, at the time given


class EngineLoop:
    """Runs the core until `close` or the first error of the executor; sleeps while there is nothing to do.

    Every request that `submit` accepted gets a last chunk, whatever happens. `on_step(chunks, load)` is called
    after each step, and between steps when requests were accepted, refused or aborted (then often without chunks).
    """

    def __init__(
        self,
        core: EngineCore,
        on_step: OnStep,
        on_dead: OnDead,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core = core
        self._on_step = on_step
        self._on_dead = on_dead
        self._clock = clock
        self._wake = threading.Condition()  # guards the three below
        self._orders: deque[Order] = deque()
        self._closing = False
        self._dead: EngineDead | None = None
        self._is_computing = False
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def submit(self, request: GenerateRequest) -> None:
        """Hand in a request. Raises `RequestRefused` when it can never run, `EngineDead` when nothing runs any more."""
        self._core.scheduler.refuse_unfit(request)
        self._order(lambda now: self._add(request, now))

    def cancel(self, request_id: str, attempt: int | None = None) -> None:
        """Abort a request (only that attempt, if given); its last chunk says ABORT. Unknown ones are ignored."""
        scheduler = self._core.scheduler
        try:
            self._order(lambda now: scheduler.abort(request_id, attempt))
        except EngineDead:
            return  # it has had its last chunk

    def progress(self) -> EngineProgress:
        """How far it has come, for a watchdog."""
        progress = self._core.progress
        return EngineProgress(progress.count, self._is_computing, progress.patience_s)

    def hand_back(self) -> None:
        """End everything with MIGRATE, as something between two steps: other engines go on with it."""
        try:
            self._order(lambda now: self._core.scheduler.hand_back())
        except EngineDead:
            return  # it has handed everything back already

    def close(self, timeout_s: float = 10.0) -> bool:
        """Hand back what is left and stop. False if a step was still running after `timeout_s`."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        elif self._dead is None:
            self._end("it was closed")
        return not self._thread.is_alive()

    def _order(self, order: Order) -> None:
        with self._wake:
            if self._dead is not None or self._closing:
                raise self._dead or EngineDead("it was closed")
            self._orders.append(order)
            self._wake.notify()

    def _run(self) -> None:
        why = "it was closed"
        try:
            while self._serve_once():
                pass
        except Exception as error:  # the executor or a callback: nothing can be trusted to go on
            why = f"{type(error).__name__}: {error}"
            logger.exception("the engine has stopped")
        finally:
            self._end(why)

    def _serve_once(self) -> bool:
        """Take in orders, compute one step, report; wait if there was nothing to compute. False when closing."""
        now = self._clock()
        self._obey_orders(now)
        self._is_computing = True
        chunks = self._core.step(now)
        self._is_computing = False
        if chunks is not None:
            self._on_step(chunks, self._core.scheduler.load())
            return not self._closing
        wake_at = self._core.scheduler.wake_at()
        timeout_s = None if wake_at is None else max(0.0, wake_at - now)
        with self._wake:
            self._wake.wait_for(lambda: self._orders or self._closing, timeout_s)
            return not self._closing

    def _obey_orders(self, now: float) -> None:
        """Let the scheduler do what was asked since the last step."""
        chunks: list[TokenChunk] = []
        num_orders = len(self._orders)
        for _ in range(num_orders):
            chunks += self._orders.popleft()(now)
        if num_orders:
            self._on_step(chunks, self._core.scheduler.load())

    def _add(self, request: GenerateRequest, now: float) -> list[TokenChunk]:
        try:
            return self._core.scheduler.add(request, now)
        except RequestRefused as refused:
            return [_failed(request, str(refused))]

    def _end(self, why: str) -> None:
        """Answer everything that is still here and give the executor back."""
        with self._wake:
            self._dead = EngineDead(why)
        for action in (self._answer_everybody, self._tell_death, self._core.executor.close):
            try:
                action()
            except Exception:  # what follows must be done whatever failed
                logger.exception("while the engine ended")

    def _answer_everybody(self) -> None:
        assert self._dead is not None
        scheduler = self._core.scheduler
        now = self._clock()
        chunks = [chunk for order in self._orders for chunk in order(now)]
        why = "" if self._closing else str(self._dead)
        self._on_step(chunks + scheduler.hand_back(why), scheduler.load())

    def _tell_death(self) -> None:
        if self._dead is not None and not self._closing:
            self._on_dead(self._dead)


def _failed(request: GenerateRequest, why: str) -> TokenChunk:
    index = len(request.output_token_ids)
    return TokenChunk(request.request_id, request.attempt, index, [], finish=FinishReason.ERROR, error=why)
