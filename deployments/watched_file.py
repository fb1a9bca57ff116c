"""WatchedFile: what a small file says, read again when it has changed."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from engine.errors import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_S = 1.0  #: between two looks at the file


class WatchedFile(Generic[T]):
    """Call it for the content as `read` understands it (ValueError: not at all).

    What cannot be read in the beginning is a ConfigError that names `field`. Later it is logged, and tried again;
    what was read last stays in force: a half-written file gives nobody access, and takes it from nobody.
    """

    def __init__(self, field: str, path: str, read: Callable[[bytes], T]) -> None:
        self._path, self._read = Path(path), read
        self._looked_at = time.monotonic()
        self._failure = ""
        try:
            self._seen = self._stamp()
            self._content = read(self._path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(field, path, f"cannot be read: {error}") from None

    def __call__(self) -> T:
        now = time.monotonic()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._look()
        return self._content

    def _look(self) -> None:
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._content = self._read(self._path.read_bytes())
                self._seen = stamp
            self._failure = ""
        except (OSError, ValueError) as error:
            if str(error) != self._failure:
                self._failure = str(error)
                logger.error("%s cannot be read; what it said before stays in force: %s", self._path, error)

    def _stamp(self) -> tuple[int, int, int]:
        found = self._path.stat()
        return (found.st_mtime_ns, found.st_size, found.st_ino)
