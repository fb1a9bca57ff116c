"""LineWriter: log lines on their way to a file descriptor. Whoever logs neither waits for it nor fails with it.

A pipe that nobody reads and a disk that is full cost lines, which are counted, and nothing else.
"""

import os
import queue
import threading

MOST_WAITING = 10_000  #: lines
BLOCKED, FAILED = "blocked", "failed"


class LineWriter:
    """A text stream, as loggers have it. A thread writes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        self.lost = {BLOCKED: 0, FAILED: 0}  #: lines: too many waited; the system took them not, or not whole
        threading.Thread(target=self._write_all, name="log-writer", daemon=True).start()

    def write(self, text: str) -> None:
        """Whole lines."""
        if self._lines.qsize() >= MOST_WAITING:
            self.lost[BLOCKED] += 1
        else:
            self._lines.put(text)

    def flush(self) -> None:
        """Loggers call it after each line, which is written at once anyway."""

    def settle(self, timeout_s: float) -> bool:
        """Wait until what was written so far is out; returns whether it is."""
        is_out = threading.Event()
        self._lines.put(is_out)
        return is_out.wait(timeout_s)

    def _write_all(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            data = line.encode("utf-8", "backslashreplace")
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError:
                self.lost[FAILED] += 1
