"""The driver's side of many ranks, against ranks that are threads."""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from engine.errors import BadCheckpoint, ConfigError, RankLost
from engine.framing import Hello, encode
from engine.rank_frames import (
    COLLECTIVE_FAILED,
    Abandon,
    Beat,
    Broken,
    Done,
    DriverConnection,
    DriverGone,
    Here,
    broken_by,
)
from engine.rank_group import RankGroup, RankListener
from engine.rank_preflight import hear_all
from engine.step import SampledToken, StepPlan, StepResult
from parallel.layout import LayoutError, RankLayout
from tests.engine.rank_starts import rank_start
from tests.parallel.test_preflight import FACTS

PATIENCE_S = 0.5


class NoProcess:
    """A rank that is a thread here."""

    def __init__(self, code: int | None) -> None:
        self.pid, self._code = 1, code

    def exit_code(self) -> int | None:
        return self._code


class NoStarter:
    """Nothing to start or to end."""

    def __init__(self) -> None:
        self.closed: list[bool] = []

    def close(self, *, force: bool = False) -> None:
        self.closed.append(force)


class FakeRanks:
    """Two ranks that behave as `behave(rank, connection)` says."""

    def __init__(self, behave: Callable[[int, DriverConnection], None]) -> None:
        listener = RankListener("127.0.0.1")
        self.starter = NoStarter()
        for rank in (1, 0):
            threading.Thread(target=self._run, args=(rank, listener, behave), daemon=True).start()
        peers = listener.accept((0, 1), 5.0, lambda rank: None)
        listener.close()
        processes = [NoProcess(None), NoProcess(-9)]
        self.group = RankGroup(peers, processes, self.starter, PATIENCE_S)  # type: ignore[arg-type]

    def _run(self, rank: int, listener: RankListener, behave: Callable[[int, DriverConnection], None]) -> None:
        connection = DriverConnection(rank_start(rank, listener))
        try:
            behave(rank, connection)
        except (DriverGone, OSError):
            pass
        finally:
            connection.close()


def plan(step: int) -> StepPlan:
    return StepPlan(step=step, dropped_ids=[], new_sequences=[], scheduled=[])


def test_a_plan_goes_to_all_with_what_was_sampled_before_and_one_answers() -> None:
    heard: list[tuple[int, int, list[tuple[int, int]]]] = []

    def behave(rank: int, connection: DriverConnection) -> None:
        while True:
            order = connection.receive()
            heard.append((rank, order.plan.step, order.sampled))
            if rank == 0:
                connection.send(Beat(order.plan.step, 1, 0, ""))
                connection.send(Done(StepResult(order.plan.step, [SampledToken(7, 100 + order.plan.step)])))

    ranks = FakeRanks(behave)
    assert [ranks.group.execute(plan(step)).step for step in (1, 2)] == [1, 2]
    ranks.group.close()
    assert {(rank, step): sampled for rank, step, sampled in heard if rank == 0} == {(0, 1): [], (0, 2): [(7, 101)]}
    assert ranks.starter.closed == [False]


def test_two_plans_may_be_on_their_way_and_the_next_one_tells_what_both_have_sampled() -> None:
    told: queue.Queue[list[tuple[int, int]]] = queue.Queue()

    def behave(rank: int, connection: DriverConnection) -> None:
        orders = [connection.receive(), connection.receive()]
        if rank == 0:
            for order in orders:
                connection.send(Done(StepResult(order.plan.step, [SampledToken(order.plan.step, 7)])))
            told.put(connection.receive().sampled)
        connection.receive()

    ranks = FakeRanks(behave)
    ranks.group.submit(plan(1))
    ranks.group.submit(plan(2))
    assert [ranks.group.collect().step, ranks.group.collect().step] == [1, 2]
    ranks.group.submit(plan(3))
    assert told.get(timeout=5.0) == [(1, 7), (2, 7)]
    ranks.group.close()


def test_a_stage_that_has_done_its_part_may_be_silent_while_the_next_one_computes() -> None:
    def behave(rank: int, connection: DriverConnection) -> None:
        order = connection.receive()
        if rank == 0:
            connection.send(Beat(order.plan.step, 4, 1, "", is_idle=True))
            connection.receive()
        for count in range(int(2 * PATIENCE_S / 0.05)):
            connection.send(Beat(order.plan.step, count, 1, ""))
            time.sleep(0.05)
        connection.send(Done(StepResult(order.plan.step, [])))

    ranks = FakeRanks(behave)
    assert ranks.group.execute(plan(3)).step == 3
    ranks.group.close()


def test_a_rank_that_is_gone_is_named_with_its_signal() -> None:
    def behave(rank: int, connection: DriverConnection) -> None:
        connection.receive()
        if rank == 0:
            connection.receive()

    ranks = FakeRanks(behave)
    with pytest.raises(RankLost, match=r"rank 1, step 3: .*signal 9"):
        ranks.group.execute(plan(3))
    ranks.group.close()
    assert ranks.starter.closed == [True]


def test_a_broken_collective_is_the_fault_of_the_rank_that_was_killed() -> None:
    def behave(rank: int, connection: DriverConnection) -> None:
        connection.receive()
        if rank == 0:
            connection.send(Broken("CollectiveFailed", ["all_reduce (number 4)", "reset by peer"], 3))
        time.sleep(PATIENCE_S)

    ranks = FakeRanks(behave)
    with pytest.raises(RankLost, match=r"rank 1, step 3: it was killed \(signal 9\)"):
        ranks.group.execute(plan(3))
    ranks.group.close()


def test_a_frozen_rank_is_told_from_those_that_wait_for_it() -> None:
    def behave(rank: int, connection: DriverConnection) -> None:
        connection.receive()
        for count in range(100):
            if rank == 0:
                connection.send(Beat(3, count, 17, "all_reduce"))
            time.sleep(0.05)

    ranks = FakeRanks(behave)
    with pytest.raises(RankLost, match=r"rank 1, step 3: has said nothing for .*frozen"):
        ranks.group.execute(plan(3))
    assert ranks.group.progress.count > 3  # the beats of the other were seen to move
    ranks.group.close()


def test_what_a_rank_says_of_a_group_that_was_given_up_counts_for_nothing() -> None:
    def behave(rank: int, connection: DriverConnection) -> None:
        connection.send(Here(0, FACTS))
        while not isinstance(connection.receive(), Abandon):
            pass
        connection.send(Broken(COLLECTIVE_FAILED, ["all_reduce", "too late"], 3))
        connection.send(Done(StepResult(3, [])))
        connection.send(Here(1, FACTS))
        connection.send(Done(StepResult(connection.receive().plan.step, [])))
        connection.receive()

    ranks, layout = FakeRanks(behave), RankLayout(2, 1)
    hear_all(ranks.group, layout, Here, PATIENCE_S)
    ranks.group.submit(plan(3))
    ranks.group.abandon([], 1, time.monotonic() + PATIENCE_S)
    assert [here.generation for here in hear_all(ranks.group, layout, Here, PATIENCE_S)] == [1, 1]
    ranks.group.be_whole()
    assert ranks.group.execute(plan(4)).step == 4
    ranks.group.close()


def test_when_nothing_moves_the_rank_that_others_wait_for_is_named_with_the_collective() -> None:
    def behave(rank: int, connection: DriverConnection) -> None:
        connection.receive()
        for _ in range(100):
            connection.send(Beat(3, 5, 17 + rank, "all_reduce" if rank else "all_gather"))
            time.sleep(0.05)

    ranks = FakeRanks(behave)
    with pytest.raises(RankLost, match=r"rank 0, .*not moved.* in all_gather \(collective 17\)"):
        ranks.group.execute(plan(3))
    ranks.group.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BadCheckpoint("model", "is damaged"), BadCheckpoint),
        (ConfigError("engine.max_model_len", 9, "lower it"), ConfigError),
        (LayoutError("4 heads % 3", "choose 2"), LayoutError),
        (RuntimeError("out of memory"), RankLost),
    ],
    ids=lambda value: str(value),
)
def test_what_a_rank_ends_of_arrives_as_it_was_raised(error: Exception, expected: type[Exception]) -> None:
    def behave(rank: int, connection: DriverConnection) -> None:
        connection.receive()
        if rank == 1:
            connection.send(broken_by(error, 4))
        connection.receive()

    ranks = FakeRanks(behave)
    with pytest.raises(expected) as raised:
        ranks.group.execute(plan(4))
    assert str(error.args[-1]) in str(raised.value)
    ranks.group.close()


def test_who_does_not_know_the_secret_is_no_rank() -> None:
    listener = RankListener("127.0.0.1")
    stranger = socket.create_connection(("127.0.0.1", listener.port))
    stranger.sendall(encode(Hello("rank", "0", b"x" * 32)))
    threading.Thread(target=DriverConnection, args=(rank_start(1, listener, b"wrong"),), daemon=True).start()
    with pytest.raises(RankLost, match="rank 0, step 0: has not called"):
        listener.accept((0, 1), 0.5, lambda rank: None)
    stranger.close()
    listener.close()


ORPHANS = """
import os, signal, sys
from engine.rank_group import RankListener
from engine.rank_spawn import on_this_host
from parallel.layout import RankLayout
from tests.engine.rank_starts import rank_start
from tests.parallel.test_preflight import FACTS
listener = RankListener("127.0.0.1")
spawner = on_this_host(RankLayout(2, 1))
processes = [spawner.start(0, rank_start(rank, listener)) for rank in range(2)]
print(*(process.pid for process in processes), flush=True)
signal.pause()
"""


def gone(pids: list[int]) -> bool:
    alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    return not alive


def wait_until(condition: Callable[[], bool]) -> bool:
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def driver() -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_no_rank_outlives_its_driver_even_if_it_is_frozen(driver: "subprocess.Popen[str]") -> None:
    assert driver.stdout is not None
    pids = [int(pid) for pid in driver.stdout.readline().split()]
    assert wait_until(lambda: all(len(psutil.Process(pid).net_connections()) == 1 for pid in pids)), "they call"
    os.kill(pids[0], signal.SIGSTOP)
    driver.kill()
    assert wait_until(lambda: gone(pids))
