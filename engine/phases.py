"""Phases: times the parts of an engine's start and reports them while they go on."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

#: Called with (phase, 0.0) when a phase begins and with (phase, its seconds) when it has ended.
Progress = Callable[[str, float], object]


class Phases:
    """Times the phases of one start."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Report that `name` begins, and how long it took once it has ended."""
        self.note(name)
        started = time.perf_counter()
        yield
        self.seconds[name] = max(0.001, round(time.perf_counter() - started, 3))  # 0 means that it has only begun
        log.info("%s took %.1f s", name, self.seconds[name])
        if self._progress is not None:
            self._progress(name, self.seconds[name])

    def note(self, text: str) -> None:
        """Show a line beside the phases."""
        if self._progress is not None:
            self._progress(text, 0.0)
