"""Log lines never hold anybody up, and cost no call, whatever becomes of standard error."""

import os
import time

import pytest

from cluster.calls.call_log import CallLog
from cluster.calls.calls import Calls
from cluster.calls.record import Caller, CallRecord
from deployments import json_logs, line_writer
from deployments.line_writer import BLOCKED, FAILED, LineWriter
from tests.deployments.serving_world import until


def test_lines_come_out_whole_and_in_order() -> None:
    reading, writing = os.pipe()
    lines = LineWriter(writing)
    for number in range(100):
        lines.write(f"{number}\udcff\n")
    assert lines.settle(5.0)
    assert os.read(reading, 65536).decode() == "".join(f"{number}\\udcff\n" for number in range(100))
    assert lines.lost == {BLOCKED: 0, FAILED: 0}


def test_a_pipe_that_nobody_reads_costs_lines_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "MOST_WAITING", 100)
    reading, writing = os.pipe()
    lines = LineWriter(writing)
    for _ in range(500):
        lines.write("x" * 4095 + "\n")
    assert lines.lost[BLOCKED] >= 500 - 100 - 17, "a pipe holds sixteen of them"
    assert not lines.settle(0.05)
    os.close(reading)
    assert lines.settle(5.0), "what waited has failed"
    assert lines.lost[FAILED] > 0


async def test_a_full_disk_costs_lines_and_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = LineWriter(os.open("/dev/full", os.O_WRONLY))
    monkeypatch.setattr(json_logs, "log_lines", lambda: lines)
    record = CallRecord("c", "m", Caller(), time.monotonic())
    calls = Calls(None, [CallLog(json_logs.event_logger())])
    async with calls.run(record):
        pass
    assert record.outcome == "ok" and not calls.sink_failures
    await until(lambda: lines.lost[FAILED] == 1)
