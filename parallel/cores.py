"""Which CPU cores each process that computes on a host owns.

Two processes whose OpenMP threads share a core wait for each other at every barrier, which turns a step of tens of
milliseconds into seconds. So the cores of a host are dealt out: every process gets its own, computes with one
thread a core and is kept there. Dealing (`share_cores`) is pure; the rest touches the host. Import this before torch:
a thread pool inherits the affinity of the thread that starts it.
"""

import fcntl
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
CPU_DEVICES = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class CoreShare:
    """The cores of one process, and how many threads it may compute with."""

    cores: tuple[int, ...]
    num_threads: int

    def pin_thread(self) -> bool:
        """Keep the calling thread, and every thread it starts from now on, on these cores.

        Threads that run already stay where they are: sockets and Ray's own threads need not compete for a core that
        computes. False where the system has no affinity (macOS) or forbids it.
        """
        if not hasattr(os, "sched_setaffinity"):
            return False
        try:
            os.sched_setaffinity(0, self.cores)
        except OSError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class HostCores:
    """The cores a process may use, grouped by physical core, and the CPU time it is allowed.

    `quota` is the container's limit in cores (may be fractional), None without one. A container with a limit often
    sees all cores of its host: threads beyond the limit only wait for each other.
    """

    physical: tuple[tuple[int, ...], ...]
    quota: float | None = None

    @property
    def num_cores(self) -> int:
        """Physical cores that compute at the same time: at least one, never more than the quota allows."""
        allowed = len(self.physical) if self.quota is None else min(len(self.physical), int(self.quota))
        return max(1, allowed)


def share_cores(host: HostCores, num_processes: int) -> tuple[CoreShare, ...]:
    """Deal the host's cores to `num_processes` equal processes; element i belongs to process i of the host.

    Physical cores are never split (their hardware threads share one arithmetic unit), neighbours stay together and
    sizes differ by at most one. Together the shares have no more threads than the host has cores; only where there
    are more processes than cores each still has its one thread, and cores are shared evenly.
    """
    if num_processes < 1:
        raise ValueError(f"num_processes = {num_processes}: share cores between at least one process")
    physical = host.physical
    if num_processes >= len(physical):
        return tuple(CoreShare(physical[i % len(physical)], 1) for i in range(num_processes))
    shares = []
    for i in range(num_processes):
        start, end = (_share_start(len(physical), num_processes, index) for index in (i, i + 1))
        cores = tuple(cpu for core in physical[start:end] for cpu in core)
        shares.append(CoreShare(cores, max(1, min(end - start, _share_size(host.num_cores, num_processes, i)))))
    return tuple(shares)


def _share_size(total: int, parts: int, index: int) -> int:
    return total // parts + (index < total % parts)


def _share_start(total: int, parts: int, index: int) -> int:
    return index * (total // parts) + min(index, total % parts)


_held: list[int] = []  #: open files, by whose locks others see what this process has


def take_part(folder: Path, num_parts: int) -> int:
    """One of `num_parts`; it is this process's until that ends, or leaves its parts.

    It is one that the fewest processes of this host have taken in this folder; among several the one whose newest
    holder is the oldest, for in a rolling update that one will leave first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    decision = os.open(folder / "decision", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(decision, fcntl.LOCK_EX)
        since = _holders(folder, num_parts)
        part = min(range(num_parts), key=lambda index: (len(since[index]), max(since[index], default=0)))
        for seat in itertools.count():
            file = folder / f"{part}.{seat}"
            if (taken := _lock(file)) is not None:
                os.utime(file)
                _held.append(taken)
                return part
    finally:
        os.close(decision)
    raise AssertionError


def leave_parts() -> None:
    """Whoever takes a part from now on does not count this process, which is about to end."""
    while _held:
        os.close(_held.pop())


def _holders(folder: Path, num_parts: int) -> list[list[int]]:
    """For each part since when its living holders have it."""
    since: list[list[int]] = [[] for _ in range(num_parts)]
    for file in folder.glob("*.*"):
        part = int(file.name.partition(".")[0])
        if (free := _lock(file)) is not None:
            os.close(free)
        elif part < num_parts:
            since[part].append(file.stat().st_mtime_ns)
    return since


def _lock(file: Path) -> int | None:
    """The file, open and locked as long as it is open; None if another has it."""
    opened = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        return None
    return opened


def read_host_cores(devices: Path = CPU_DEVICES, cgroup: Path = CGROUP) -> HostCores:
    """The cores this process may run on, from its affinity, the CPU topology and the container's CPU limit."""
    if hasattr(os, "sched_getaffinity"):
        usable: Sequence[int] = sorted(os.sched_getaffinity(0))
    else:
        usable = range(os.cpu_count() or 1)

    def siblings(cpu: int) -> str:
        try:
            return (devices / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
        except OSError:
            return str(cpu)

    return HostCores(group_siblings(usable, siblings), read_cpu_quota(cgroup))


def group_siblings(usable: Sequence[int], siblings: Callable[[int], str]) -> tuple[tuple[int, ...], ...]:
    """Group logical CPUs by physical core; `siblings(cpu)` is equal for CPUs of one core and no others."""
    groups: dict[str, list[int]] = {}
    for cpu in usable:
        groups.setdefault(siblings(cpu), []).append(cpu)
    return tuple(tuple(group) for group in groups.values())


def read_cpu_quota(cgroup: Path = CGROUP) -> float | None:
    """The container's CPU limit in cores (cgroup v2 `cpu.max`, else v1 `cpu.cfs_*`), None without a limit."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if limit in ("max", "-1"):
        return None
    return int(limit) / int(period)
