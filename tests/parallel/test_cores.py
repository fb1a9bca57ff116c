"""Dealing the cores of a host: none twice, none idle, never more threads than cores."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.cores import (
    CoreShare,
    HostCores,
    group_siblings,
    read_cpu_quota,
    read_host_cores,
    share_cores,
)


def plain_host(num_cores: int, quota: float | None = None) -> HostCores:
    return HostCores(tuple((cpu,) for cpu in range(num_cores)), quota)


def test_two_replicas_on_two_cores_get_one_each() -> None:
    assert share_cores(plain_host(2), 2) == (CoreShare((0,), 1), CoreShare((1,), 1))


def test_one_replica_gets_everything() -> None:
    assert share_cores(plain_host(4), 1) == (CoreShare((0, 1, 2, 3), 4),)


def test_more_replicas_than_cores_take_turns_with_one_thread() -> None:
    assert share_cores(plain_host(2), 3) == (CoreShare((0,), 1), CoreShare((1,), 1), CoreShare((0,), 1))


def test_hardware_threads_of_a_core_stay_together() -> None:
    host = HostCores(((0, 4), (1, 5), (2, 6), (3, 7)))
    assert share_cores(host, 2) == (CoreShare((0, 4, 1, 5), 2), CoreShare((2, 6, 3, 7), 2))


def test_container_limit_bounds_threads() -> None:
    shares = share_cores(plain_host(64, quota=2.0), 2)
    assert [share.num_threads for share in shares] == [1, 1]
    assert plain_host(64, quota=0.5).num_cores == 1


def test_no_process_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="num_processes = 0"):
        share_cores(plain_host(2), 0)


@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 2), st.one_of(st.none(), st.floats(0.1, 64.0)))
def test_shares_are_disjoint_complete_and_bounded(
    num_cores: int, num_processes: int, hardware_threads: int, quota: float | None
) -> None:
    physical = tuple(tuple(core + num_cores * i for i in range(hardware_threads)) for core in range(num_cores))
    host = HostCores(physical, quota)
    shares = share_cores(host, num_processes)
    assert len(shares) == num_processes
    assert {cpu for share in shares for cpu in share.cores} <= {cpu for core in physical for cpu in core}
    assert all(1 <= share.num_threads <= len(share.cores) for share in shares)
    if num_processes <= num_cores:
        dealt = [cpu for share in shares for cpu in share.cores]
        assert sorted(dealt) == sorted(cpu for core in physical for cpu in core)
        sizes = {len(share.cores) // hardware_threads for share in shares}
        assert max(sizes) - min(sizes) <= 1
    assert sum(share.num_threads for share in shares) <= max(num_processes, host.num_cores)


def test_siblings_are_grouped() -> None:
    names = {0: "0,2", 2: "0,2", 1: "1,3", 3: "1,3"}
    assert group_siblings([0, 1, 2, 3], names.__getitem__) == ((0, 2), (1, 3))
    assert group_siblings([1, 2], names.__getitem__) == ((1,), (2,))


def test_quota_of_both_kinds_of_container(tmp_path: Path) -> None:
    assert read_cpu_quota(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert read_cpu_quota(tmp_path) is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    assert read_cpu_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("400000 100000\n")
    assert read_cpu_quota(tmp_path) == 4.0
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert read_cpu_quota(tmp_path) is None


def test_topology_files_are_read(tmp_path: Path) -> None:
    usable = sorted(os.sched_getaffinity(0))
    for cpu in usable:
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("all of them\n")
    assert read_host_cores(tmp_path, tmp_path) == HostCores((tuple(usable),), None)


def test_pinning_holds_for_the_thread_and_those_it_starts() -> None:
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    seen: list[set[int]] = []

    def computing() -> None:
        assert CoreShare((core,), 1).pin_thread()
        seen.append(os.sched_getaffinity(0))
        child = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        child.start()
        child.join()

    thread = threading.Thread(target=computing)
    thread.start()
    thread.join()
    assert seen == [{core}, {core}]
    assert os.sched_getaffinity(0) == before


def test_pinning_to_a_core_that_is_not_there_says_so() -> None:
    assert CoreShare((100_000,), 1).pin_thread() is False


TAKER = """
import sys
from pathlib import Path
from parallel.cores import leave_parts, take_part
print(take_part(Path(sys.argv[1]), int(sys.argv[2])), flush=True)
sys.stdin.readline()
leave_parts()
print("left", flush=True)
sys.stdin.read()
"""


class Taker:
    """A process that takes a part, and leaves it when it is told to."""

    def __init__(self, folder: Path, num_parts: int = 2) -> None:
        command = [sys.executable, "-c", TAKER, str(folder), str(num_parts)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and self.process.stdin is not None
        self.part = int(self.process.stdout.readline())

    def leave(self) -> None:
        assert self.process.stdout is not None and self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "left\n"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def takers() -> Iterator[list[Taker]]:
    found: list[Taker] = []
    yield found
    for taker in found:
        taker.end()


def test_parts_stay_even_through_a_rolling_update(takers: list[Taker], tmp_path: Path) -> None:
    def take() -> Taker:
        takers.append(Taker(tmp_path))
        return takers[-1]

    old_a, old_b = take(), take()
    assert (old_a.part, old_b.part) == (0, 1)
    new_a = take()  # before the old one leaves
    assert new_a.part == old_a.part
    old_a.end()
    new_b = take()
    assert new_b.part == old_b.part


def test_who_drains_is_not_counted(takers: list[Taker], tmp_path: Path) -> None:
    takers += [Taker(tmp_path), Taker(tmp_path)]
    takers[1].leave()
    takers.append(Taker(tmp_path))
    assert [taker.part for taker in takers] == [0, 1, 1]
