"""SIGTERM in a process whose main thread is Ray's: the first one asks, the second one ends the process at once.

Ray's worker answers SIGTERM by exiting, and Python lets only the main thread, which Ray never gives away, set another
handler. `faulthandler` may be set from any thread and writes from inside the signal handler itself: here into a pipe,
where a thread waits. What it writes is of no interest but for its first line, which counts the signals.
"""

import faulthandler
import os
import signal
import threading
from collections.abc import Callable

_HEADER = b"most recent call first"
EXIT_CODE = 128 + signal.SIGTERM


def on_sigterm(ask: Callable[[], object]) -> None:
    """Call `ask` from a thread of its own at the first SIGTERM. For the whole process, from now on."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    faulthandler.register(signal.SIGTERM, file=writing, all_threads=False, chain=False)
    threading.Thread(target=_wait, args=(reading, ask), name="sigterm", daemon=True).start()


def _wait(reading: int, ask: Callable[[], object]) -> None:
    written, num_seen = b"", 0
    while True:
        written += os.read(reading, 65536)
        num_signals = written.count(_HEADER)
        if num_signals > 1:
            os._exit(EXIT_CODE)
        if num_signals > num_seen:
            num_seen = num_signals
            ask()
