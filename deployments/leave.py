"""Leave: the one way in which a replica's or a gateway's process ends on purpose: once, and only then gone.

Begun by SIGTERM, by a router shard's `Drain`, or by Serve, which then ends the process itself.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable

from deployments.json_logs import SETTLE_S, log_lines

logger = logging.getLogger("manta.leave")


def _end_process() -> None:
    log_lines().settle(SETTLE_S)
    os._exit(0)


class Leave:
    """Runs `take` once; `end` ends the process."""

    def __init__(self, take: Callable[[], Awaitable[None]], end: Callable[[], None] = _end_process) -> None:
        self._take, self._end = take, end
        self._task: asyncio.Task[None] | None = None
        self._serve_waits = False

    @property
    def has_begun(self) -> bool:
        return self._task is not None

    def begin(self) -> None:
        """Take leave now; the process ends at the end of it. A second call changes nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def wait(self) -> None:
        """Take leave, if that has not begun, and come back at the end of it, the process alive."""
        self._serve_waits = True
        self.begin()
        assert self._task is not None
        await asyncio.shield(self._task)

    async def _run(self) -> None:
        try:
            await self._take()
        except Exception:  # the process ends all the same
            logger.exception("while taking leave")
        if not self._serve_waits:
            self._end()
