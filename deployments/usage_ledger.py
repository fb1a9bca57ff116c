"""UsageLedger: the append-only files in which a gateway writes what each call has used; and how they are read.

One row a call, as a line of JSON, in files of one gateway and one UTC day, of at most 64 MiB. A thread writes each row
at once and has the disk sync at most once a second: the death of the process loses nothing that the thread has taken,
that of the machine a second. When the disk takes nothing, serving goes on and lost rows are counted.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import msgspec

from cluster.calls.record import CallRecord
from cluster.calls.usage import UsageRow, usage_of
from engine.errors import ConfigError

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_WAITING = 100_000  #: rows that a slow disk may owe; more are lost
MAX_BATCH = 1000
SYNC_S = 1.0
logger = logging.getLogger("manta.usage")
_day_of = attrgetter("day")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(UsageRow).decode


class UsageLedger:
    """A `CallSink`. `on_lost` is told of how many rows were lost, in any thread."""

    def __init__(self, folder: str, gateway: str, cached_weight: float, on_lost: Callable[[int], object]) -> None:
        self._folder, self._gateway, self._cached_weight = Path(folder), gateway, cached_weight
        self._on_lost = on_lost
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("ledger.dir", folder, f"cannot be made: {error.strerror}") from None
        self._rows: queue.SimpleQueue[UsageRow | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="usage-ledger", daemon=True)
        self._thread.start()

    def began(self, record: CallRecord) -> None:
        """A call is written down when it has ended."""

    def ended(self, record: CallRecord) -> None:
        if self._rows.qsize() >= MAX_WAITING:
            self._on_lost(1)
        else:
            self._rows.put(usage_of(record, self._cached_weight, time.time()))

    def close(self) -> None:
        """All rows are on the disk; blocks until they are."""
        self._rows.put(None)
        self._thread.join()

    # The thread

    def _write_all(self) -> None:
        file = _LedgerFile(self._folder, self._gateway)
        is_open, is_failing = True, False
        while is_open:
            rows: list[UsageRow] = []
            while len(rows) < MAX_BATCH:
                try:
                    row = self._rows.get(timeout=0.0 if rows else file.sync_in_s())
                except queue.Empty:
                    break
                if row is None:
                    is_open = False
                    break
                rows.append(row)
            for batch in [list(batch) for _, batch in groupby(rows, _day_of)] or [[]]:
                try:
                    file.write(batch)
                    is_failing = False
                except OSError as error:
                    self._on_lost(len(batch))
                    if not is_failing:
                        logger.error("usage cannot be written down: %s; serving goes on", error)
                    is_failing = True
        file.close()


class _LedgerFile:
    """The file that is written to now."""

    def __init__(self, folder: Path, gateway: str) -> None:
        self._folder, self._gateway = folder, gateway
        self._file: int | None = None
        self._day, self._number, self._size = "", 0, 0
        self._synced_at, self._is_dirty = time.monotonic(), False

    def sync_in_s(self) -> float | None:
        """How long nothing need be done if nothing comes."""
        return max(0.0, self._synced_at + SYNC_S - time.monotonic()) if self._is_dirty else None

    def write(self, rows: list[UsageRow]) -> None:
        """All or none of them, which are of one day, and a sync if it is time to; OSError if the disk takes nothing."""
        if rows:
            data = b"".join(_encode(row) + b"\n" for row in rows)
            if self._file is None or rows[-1].day != self._day or self._size + len(data) > MAX_FILE_BYTES:
                self._begin(rows[-1].day)
            self._append(data)
            self._is_dirty = True
        if self._is_dirty and time.monotonic() >= self._synced_at + SYNC_S:
            self._sync()

    def close(self) -> None:
        if self._file is not None:
            self._sync()
            os.close(self._file)
            self._file = None

    def _sync(self) -> None:
        assert self._file is not None
        self._synced_at, self._is_dirty = time.monotonic(), False
        os.fsync(self._file)

    def _begin(self, day: str) -> None:
        self.close()
        self._day, self._size = day, 0
        while self._file is None:
            self._number += 1
            path = self._folder / f"usage-{day}-{self._gateway}-{self._number}.jsonl"
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o640)
            except FileExistsError:
                continue

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self._size)  # no half row, and no row that is counted as lost
            raise
        self._size += len(data)


def read_usage(file: Path) -> Iterator[UsageRow]:
    """The rows of a file. Its last line may be half written, now or by a crash: then it is left out.

    ConfigError where any other line is no row.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _decode(line)
            except msgspec.MsgspecError as error:
                raise ConfigError("dir", str(file), f"line {number} is no row of a ledger: {error}") from None
