"""Processes of this host that are started as ranks: what cannot hear is passed over, and all are ended."""

import subprocess

from engine.rank_group import RankListener
from engine.rank_spawn import HostProcess, HostSpawner, StagePlace
from tests.engine.rank_starts import rank_start


def test_a_spare_that_hears_nothing_is_passed_over_and_hinders_no_end() -> None:
    """As one that dies just when it is told to begin, and leaves unread what it was told."""
    spawner, listener, deaf = HostSpawner([StagePlace()]), RankListener("127.0.0.1"), deaf_process()
    spawner.keep_spares(1)
    (alive,) = spawner._spares
    spawner._spares.insert(0, deaf)
    spawner._processes.insert(0, deaf)
    try:
        assert spawner.start(0, rank_start(0, listener)) is alive
    finally:
        spawner.close(force=True)
        listener.close()
    assert None not in (deaf.exit_code(), alive.exit_code())


def deaf_process() -> HostProcess:
    """It runs, and its input is closed."""
    command = ["sh", "-c", "exec 0<&-; echo; exec sleep 60"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"\n"
    process.stdout.close()
    return HostProcess(process)
