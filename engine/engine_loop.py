"""The thread that runs an engine: requests come in from any thread, tokens leave by a callback once per step.

The only place of the engine's deciding half that reads a clock. Asyncio is the caller's business: `on_step` is
called on the loop's thread and hops from there.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from engine.config import EngineInfo
from engine.core import EngineCore, Rebuilder
from engine.errors import EngineAway, EngineDead, RankLost, RequestRefused
from engine.request import EngineLoad, FinishReason, GenerateRequest, TokenChunk
from engine.step_progress import EngineProgress

logger = logging.getLogger(__name__)

OnStep = Callable[[list[TokenChunk], EngineLoad], None]
OnDead = Callable[[EngineDead], None]
OnRebuild = Callable[[EngineInfo | None], None]
IDLE_LOOK_S = 0.5  #: so often an engine with nothing to do looks whether its ranks are all there
Order = Callable[[float], list[TokenChunk]]  #: something for the scheduler to do, at the time given


class EngineLoop:
    """Runs the core until `close` or the first error of the executor; sleeps while there is nothing to do.

    Every request that `submit` accepted gets a last chunk, whatever happens. `on_step(chunks, load)` is called
    after each step, and when requests were accepted, refused or aborted (then often without chunks).
    When a rank is lost and can be replaced, `on_rebuild(None)` is called, all that is here ends at once, and nothing is
    taken until `on_rebuild` tells what the engine is then.
    """

    def __init__(
        self,
        core: EngineCore,
        on_step: OnStep,
        on_dead: OnDead,
        on_rebuild: OnRebuild = lambda info: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core = core
        self._on_step = on_step
        self._on_dead = on_dead
        self._on_rebuild = on_rebuild
        self._clock = clock
        self._wake = threading.Condition()  # guards the four below
        self._orders: deque[Order] = deque()
        self._closing = False
        self._away: EngineAway | None = None  # while its ranks are rebuilt
        self._dead: EngineDead | None = None
        self._is_computing = False
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def submit(self, request: GenerateRequest) -> None:
        """Hand in a request.

        Raises `RequestRefused` when it can never run, `EngineDead` when nothing runs any more, `EngineAway`.
        """
        self._core.scheduler.refuse_unfit(request)
        self._order(lambda now: self._add(request, now))

    def cancel(self, request_id: str, attempt: int | None = None) -> None:
        """Abort a request (only that attempt, if given); its last chunk says ABORT. Unknown ones are ignored."""
        scheduler = self._core.scheduler
        try:
            self._order(lambda now: scheduler.abort(request_id, attempt))
        except (EngineDead, EngineAway):
            return  # it has had its last chunk

    def progress(self) -> EngineProgress:
        """How far it has come, for a watchdog."""
        progress = self._core.progress
        return EngineProgress(progress.count, self._is_computing, progress.patience_s)

    def hand_back(self) -> None:
        """End everything with MIGRATE, as something between two steps: other engines go on with it."""
        try:
            self._order(lambda now: self._core.scheduler.hand_back())
        except (EngineDead, EngineAway):
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
            if self._away is not None:
                raise self._away
            self._orders.append(order)
            self._wake.notify()

    def _run(self) -> None:
        why = "it was closed"
        try:
            while self._serve():
                pass
        except Exception as error:  # the executor or a callback: nothing can be trusted to go on
            why = f"{type(error).__name__}: {error}"
            logger.exception("the engine has stopped")
        finally:
            self._end(why)

    def _serve(self) -> bool:
        """`_serve_once`, and what follows when a rank is lost."""
        rebuilder = self._core.rebuilder
        try:
            return self._serve_once()
        except RankLost as lost:
            if rebuilder is None or not rebuilder.may_begin(self._clock()):
                raise
            self._rebuild(rebuilder, lost)
            return not self._closing

    def _rebuild(self, rebuilder: Rebuilder, lost: RankLost) -> None:
        """Let what is here go on elsewhere, and take nothing until the ranks are whole again."""
        logger.error("a rank is lost and will be replaced: %s", lost)
        self._is_computing = False
        with self._wake:
            self._away = EngineAway(str(lost))
        self._on_rebuild(None)
        scheduler = self._core.scheduler
        chunks = self._take_orders(self._clock()) + scheduler.hand_back(str(lost))
        self._on_step(chunks, scheduler.load())
        info = rebuilder.rebuild(lost)
        with self._wake:
            self._away = None
        self._on_rebuild(info)

    def _serve_once(self) -> bool:
        """Take in a result and orders, put the next step under way, report; wait if there is none. False when closing.

        So ranks compute while what they have sampled is handed out.
        """
        scheduler = self._core.scheduler
        self._is_computing = True
        chunks = self._core.collect()
        now = self._clock()
        try:
            if self._orders:
                chunks = (chunks or []) + self._take_orders(now)
            if not self._closing:
                self._core.submit(now)
        finally:
            self._is_computing = False
            if chunks is not None:
                self._on_step(chunks, scheduler.load())
        if scheduler.num_in_flight:
            return not self._closing
        wake_at = scheduler.wake_at()
        timeout_s = None if wake_at is None else max(0.0, wake_at - now)
        if self._core.rebuilder is not None:
            self._core.rebuilder.look()
            timeout_s = IDLE_LOOK_S if timeout_s is None else min(timeout_s, IDLE_LOOK_S)
        with self._wake:
            self._wake.wait_for(lambda: self._orders or self._closing, timeout_s)
            return not self._closing

    def _take_orders(self, now: float) -> list[TokenChunk]:
        """Let the scheduler do what was asked since the last step."""
        chunks: list[TokenChunk] = []
        for _ in range(len(self._orders)):
            chunks += self._orders.popleft()(now)
        return chunks

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
        chunks = self._take_orders(self._clock())
        why = "" if self._closing else str(self._dead)
        self._on_step(chunks + scheduler.hand_back(why), scheduler.load())

    def _tell_death(self) -> None:
        if self._dead is not None and not self._closing:
            self._on_dead(self._dead)


def _failed(request: GenerateRequest, why: str) -> TokenChunk:
    index = len(request.output_token_ids)
    return TokenChunk(request.request_id, request.attempt, index, [], finish=FinishReason.ERROR, error=why)
