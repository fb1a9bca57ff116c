"""The loop with real threads around the chain executor."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine.chain_executor import ChainExecutor
from engine.config import EngineConfig, EngineInfo
from engine.core import EngineCore
from engine.engine_loop import EngineLoop
from engine.errors import EngineAway, EngineDead, RankLost, RequestRefused
from engine.request import EngineLoad, FinishReason, TokenChunk
from engine.scheduler import Scheduler
from engine.step import StepPlan, StepResult
from tests.engine.chain_world import BLOCK_SIZE, VOCAB_SIZE, chain_output, engine_info, generate, static

PATIENCE_S = 10.0


class Client:
    """What comes out of a loop, and an executor that can be told to wait or to fail at the next step."""

    def __init__(self, step_delay_s: float = 0.0, steps_in_flight: int = 1, **settings: Any) -> None:
        info = engine_info(num_blocks=64, max_num_seqs=8, max_steps_in_flight=steps_in_flight)
        config = EngineConfig(**({"block_size": BLOCK_SIZE, "check_invariants": True} | settings))
        self.chain = ChainExecutor(VOCAB_SIZE, info.num_blocks, BLOCK_SIZE, step_delay_s)
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.num_steps = 0
        self.under_way: deque[StepPlan] = deque()
        self.most_under_way = 0
        self.refused_step = 0
        self.num_closed = 0
        self.num_clock_reads = 0
        self.chunks: list[TokenChunk] = []
        self.loads: list[EngineLoad] = []
        self.threads: set[str] = set()
        self.deaths: list[EngineDead] = []
        self.changed = threading.Condition()
        self.on_step_error: Exception | None = None
        self.core = EngineCore(Scheduler(config, info), self)
        self.rebuilds: list[EngineInfo | None] = []
        self.loop = EngineLoop(self.core, self.on_step, self.on_dead, self.on_rebuild, self.clock)

    def clock(self) -> float:
        self.num_clock_reads += 1
        return time.monotonic()

    def submit(self, plan: StepPlan) -> None:
        if plan.step == self.refused_step:
            raise RuntimeError("a connection has broken")
        self.under_way.append(plan)
        self.most_under_way = max(self.most_under_way, len(self.under_way))

    def collect(self) -> StepResult:
        return self.execute(self.under_way.popleft())

    def execute(self, plan: StepPlan) -> StepResult:
        assert self.gate.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.num_steps += 1
        return self.chain.execute(plan)

    def close(self) -> None:
        self.num_closed += 1

    def on_step(self, chunks: list[TokenChunk], load: EngineLoad) -> None:
        if self.on_step_error is not None:
            raise self.on_step_error
        with self.changed:
            self.chunks += chunks
            self.loads.append(load)
            self.threads.add(threading.current_thread().name)
            self.changed.notify_all()

    def on_rebuild(self, info: EngineInfo | None) -> None:
        with self.changed:
            self.rebuilds.append(info)
            self.changed.notify_all()

    def on_dead(self, dead: EngineDead) -> None:
        with self.changed:
            self.deaths.append(dead)
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE_S), f"got {self.finishes()}, loads {self.loads[-3:]}"

    def read(self, request_id: str) -> list[int]:
        return [token for chunk in self.chunks if chunk.request_id == request_id for token in chunk.token_ids]

    def errors(self) -> dict[str, str]:
        """What the last chunk of each request says went wrong."""
        return {chunk.request_id: chunk.error for chunk in self.chunks}

    def finishes(self) -> dict[str, FinishReason]:
        return {chunk.request_id: chunk.finish for chunk in self.chunks if chunk.finish is not None}


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    made.loop.start()
    yield made
    made.gate.set()
    assert made.loop.close()


def test_requests_from_many_threads_are_exact(client: Client) -> None:
    requests = [generate(f"{i}", [i % 3, i % 5, i % 7], max_tokens=20) for i in range(60)]

    def submit(share: list[Any]) -> None:
        for request in share:
            client.loop.submit(request)

    threads = [threading.Thread(target=submit, args=(requests[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    client.wait_for(lambda: len(client.finishes()) == len(requests))
    for request in requests:
        output, finish = chain_output(request)
        assert (client.read(request.request_id), client.finishes()[request.request_id]) == (output, finish)
    assert client.threads == {"engine-loop"}
    assert client.loads[-1].num_accepted == 60
    assert client.loads[-1].free_blocks == 64


def test_with_several_steps_under_way_streams_are_exact_and_can_be_cancelled() -> None:
    client = Client(steps_in_flight=3)
    client.gate.clear()
    client.loop.start()
    requests = [generate(f"{i}", [i % 3, i % 5], max_tokens=20) for i in range(30)]
    for request in requests:
        client.loop.submit(request)
    client.loop.submit(generate("gone", [1], max_tokens=100))
    client.loop.cancel("gone")
    client.gate.set()
    client.wait_for(lambda: len(client.finishes()) == len(requests) + 1)
    for request in requests:
        assert (client.read(request.request_id), client.finishes()[request.request_id]) == chain_output(request)
    assert client.finishes()["gone"] is FinishReason.ABORT
    assert client.most_under_way == 3
    assert client.loop.close()


def test_tokens_that_are_there_are_told_even_if_the_next_step_cannot_begin() -> None:
    client = Client()
    client.refused_step = 3
    client.loop.start()
    request = generate("a", [1, 2], max_tokens=9)
    client.loop.submit(request)
    client.wait_for(lambda: client.deaths != [])
    assert client.read("a") == chain_output(request)[0][:2]
    assert [chunk.index for chunk in client.chunks] == [0, 1, 2]
    assert client.finishes() == {"a": FinishReason.MIGRATE}
    assert client.loop.close()


def test_it_sleeps_when_idle_and_wakes_for_the_next_request(client: Client) -> None:
    for name in ("a", "b"):
        client.loop.submit(generate(name, [1, 2], max_tokens=2))
        client.wait_for(lambda name=name: name in client.finishes())
        time.sleep(0.05)
        num_clock_reads = client.num_clock_reads
        time.sleep(0.1)
        assert client.num_clock_reads == num_clock_reads


def test_one_report_per_step_and_one_for_each_change_between_steps(client: Client) -> None:
    client.gate.clear()
    client.loop.submit(generate("a", [1, 2], max_tokens=3))
    client.wait_for(lambda: client.loads != [])
    assert [(load.num_running, load.step) for load in client.loads] == [(1, 0)]
    client.gate.set()
    client.wait_for(lambda: "a" in client.finishes())
    assert [load.step for load in client.loads] == [0, 1, 2, 3]


def test_cancel_ends_a_request_between_two_steps(client: Client) -> None:
    client.gate.clear()
    client.loop.submit(generate("a", [1, 2], max_tokens=100))
    client.wait_for(lambda: client.loads != [])
    client.loop.cancel("a", attempt=3)
    client.loop.cancel("unknown")
    client.loop.cancel("a")
    client.gate.set()
    client.wait_for(lambda: "a" in client.finishes())
    assert client.finishes() == {"a": FinishReason.ABORT}
    assert client.num_steps == 1
    assert (client.loads[-1].num_running, client.loads[-1].free_blocks) == (0, 64)


def test_what_cannot_run_is_refused_at_once_and_a_double_gets_an_answer(client: Client) -> None:
    with pytest.raises(RequestRefused, match="empty"):
        client.loop.submit(generate("a", []))
    client.gate.clear()
    client.loop.submit(generate("b", [1, 2], max_tokens=50))
    client.loop.submit(generate("b", [1, 2], max_tokens=50))
    client.gate.set()
    client.wait_for(lambda: "b" in client.finishes())
    first = next(chunk for chunk in client.chunks if chunk.finish is not None)
    assert first.finish is FinishReason.ERROR
    assert "here already" in first.error


def test_a_failing_executor_answers_everybody_and_ends_the_engine(client: Client) -> None:
    client.gate.clear()
    client.loop.submit(generate("running", [1, 2], max_tokens=100))
    client.wait_for(lambda: client.loads != [])
    client.loop.submit(generate("waiting", [3, 4], max_tokens=100))
    client.error = RuntimeError("the rank is gone")
    client.gate.set()
    client.wait_for(lambda: client.deaths != [])
    assert client.finishes() == {"running": FinishReason.MIGRATE, "waiting": FinishReason.MIGRATE}
    assert client.errors() == {"running": "the engine has stopped: RuntimeError: the rank is gone", "waiting": ""}
    assert [death.why for death in client.deaths] == ["RuntimeError: the rank is gone"]
    with pytest.raises(EngineDead, match="the rank is gone"):
        client.loop.submit(generate("late", [1]))
    client.loop.cancel("running")
    assert client.loop.close()
    assert client.num_closed == 1


class Spares:
    """A rebuilder that has some spares; each takes the place of the lost ranks when the gate is open."""

    def __init__(self, client: Client, num_spares: int) -> None:
        self.client, self.num_spares = client, num_spares
        self.gate = threading.Event()
        self.lost: list[RankLost] = []
        self.is_lost_idle = False
        client.core.rebuilder = self

    def look(self) -> None:
        if self.is_lost_idle:
            self.is_lost_idle = False
            raise RankLost(1, 0, "it has ended")

    def may_begin(self, now: float) -> bool:
        return len(self.lost) < self.num_spares

    def rebuild(self, lost: RankLost) -> EngineInfo:
        self.lost.append(lost)
        assert self.gate.wait(PATIENCE_S)
        self.client.error = None
        self.client.chain = ChainExecutor(VOCAB_SIZE, 64, BLOCK_SIZE)  # empty
        return engine_info(num_blocks=64)


def test_when_a_rank_is_lost_all_goes_on_elsewhere_and_the_engine_comes_back_empty(client: Client) -> None:
    spares = Spares(client, 1)
    client.gate.clear()
    client.loop.submit(generate("running", [1, 2, 3, 4, 5], max_tokens=100))
    client.wait_for(lambda: client.loads != [])
    client.loop.submit(generate("waiting", [3, 4], max_tokens=100))
    client.error = lost = RankLost(1, 7, "it was killed")
    client.gate.set()
    client.wait_for(lambda: len(client.finishes()) == 2)
    assert client.finishes() == {"running": FinishReason.MIGRATE, "waiting": FinishReason.MIGRATE}
    assert client.errors() == {"running": str(lost), "waiting": ""}
    assert client.rebuilds == [None] and not client.loop.progress().is_busy
    with pytest.raises(EngineAway, match="rank 1, step 7"):
        client.loop.submit(generate("early", [1]))
    client.loop.cancel("running")
    spares.gate.set()
    client.wait_for(lambda: len(client.rebuilds) == 2)
    again = generate("again", [1, 2, 3, 4, 5], max_tokens=9)
    client.loop.submit(again)
    client.wait_for(lambda: "again" in client.finishes())
    assert client.read("again") == chain_output(again)[0]
    assert spares.lost == [lost] and client.loads[-1].num_cached_tokens == 0 and client.deaths == []


def test_a_rank_that_ends_while_nothing_is_computed_is_replaced_too(client: Client) -> None:
    spares = Spares(client, 1)
    spares.gate.set()
    spares.is_lost_idle = True
    client.loop.submit(generate("a", [1, 2], max_tokens=2))
    client.wait_for(lambda: len(client.rebuilds) == 2)
    assert client.finishes() == {"a": FinishReason.LENGTH}


def test_a_loss_that_is_not_worth_a_rebuild_ends_the_engine(client: Client) -> None:
    spares = Spares(client, 0)
    client.error = RankLost(0, 1, "once too often")
    client.loop.submit(generate("a", [1, 2], max_tokens=2))
    client.wait_for(lambda: client.deaths != [])
    assert "once too often" in client.deaths[0].why and spares.lost == [] and client.rebuilds == []
    assert client.finishes() == {"a": FinishReason.MIGRATE}


def test_a_failing_callback_ends_the_engine_too(client: Client) -> None:
    client.on_step_error = RuntimeError("no event loop")
    client.loop.submit(generate("a", [1]))
    client.wait_for(lambda: client.deaths != [])
    assert client.deaths[0].why == "RuntimeError: no event loop"
    assert client.loop.close()
    assert client.num_closed == 1


def test_close_answers_what_is_left_and_gives_the_executor_back() -> None:
    client = Client(step_delay_s=0.002)
    client.loop.start()
    client.loop.submit(generate("a", [1, 2], max_tokens=100))
    client.wait_for(lambda: client.read("a") != [])
    assert client.loop.close()
    assert client.finishes() == {"a": FinishReason.MIGRATE}
    assert client.chunks[-1].error == "", "the engine is well"
    assert client.read("a") == chain_output(generate("a", [1, 2], max_tokens=100))[0][: len(client.read("a"))]
    assert (client.num_closed, client.deaths) == (1, [])
    with pytest.raises(EngineDead, match="closed"):
        client.loop.submit(generate("late", [1]))
    assert client.loop.close()


def test_handing_back_ends_everything_and_the_engine_goes_on(client: Client) -> None:
    client.gate.clear()
    client.loop.submit(generate("a", [1, 2], max_tokens=100))
    client.wait_for(lambda: client.loads != [])
    client.loop.submit(generate("b", [3], max_tokens=100))
    client.loop.hand_back()
    client.gate.set()
    client.wait_for(lambda: len(client.finishes()) == 2)
    assert client.finishes() == {"a": FinishReason.MIGRATE, "b": FinishReason.MIGRATE}
    assert {chunk.error for chunk in client.chunks} == {""}
    client.loop.submit(generate("c", [1, 2], max_tokens=3))
    client.wait_for(lambda: client.finishes().get("c") is FinishReason.LENGTH)
    before = client.loop.progress()
    assert before.progress >= 4
    client.wait_for(lambda: not client.loop.progress().is_busy)


def test_close_before_start_answers_too() -> None:
    client = Client()
    client.loop.submit(generate("a", [1]))
    assert client.loop.close()
    assert client.finishes() == {"a": FinishReason.MIGRATE}
    assert client.loop.close()
    assert client.num_closed == 1


def test_a_step_that_hangs_is_seen_from_outside(client: Client) -> None:
    assert not client.loop.progress().is_busy
    client.gate.clear()
    client.loop.submit(generate("a", [1], max_tokens=1))
    client.wait_for(lambda: client.loads != [])
    time.sleep(0.01)
    seen = client.loop.progress()
    assert seen.is_busy and client.loop.progress() == seen
    assert not client.loop.close(timeout_s=0.05)


def test_an_unfilled_batch_starts_by_time_though_nothing_arrives() -> None:
    client = Client(**static(4, timeout_s=0.1))
    client.loop.start()
    begin = time.monotonic()
    client.loop.submit(generate("a", [1], max_tokens=2))
    client.wait_for(lambda: "a" in client.finishes())
    assert time.monotonic() - begin >= 0.1
    assert client.num_clock_reads < 12
    assert client.loop.close()
