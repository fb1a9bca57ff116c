"""Logs as JSON, one object a line, on a process's standard error, where Ray and Kubernetes collect it."""

import atexit
import logging
from functools import cache
from typing import Any

import structlog

from deployments.line_writer import LineWriter

_STANDARD_ERROR = 2
SETTLE_S = 1.0  #: the last lines of a process may take so long
_ROOMS = ("manta", "cluster", "deployments", "engine", "parallel")
#: Beyond ASCII all is escaped: there are more line ends than one thinks.
_RENDER = structlog.processors.JSONRenderer(default=str)
_STAMP = structlog.processors.TimeStamper(fmt="iso", utc=True)


@cache
def log_lines() -> LineWriter:
    """Where all of this process's lines go."""
    lines = LineWriter(_STANDARD_ERROR)
    atexit.register(lines.settle, SETTLE_S)
    return lines


def log_as_json() -> None:
    """From now on the loggers of this process's rooms write JSON, exceptions too, and nowhere else."""
    handler = logging.StreamHandler(log_lines())
    before: list[structlog.types.Processor] = [structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name, _STAMP]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _RENDER,
            ],
        )
    )
    for room in _ROOMS:
        logger = logging.getLogger(room)
        logger.handlers, logger.propagate = [handler], False


def event_logger() -> Any:
    """Writes the fields that it is given, and when."""
    return structlog.wrap_logger(
        structlog.WriteLogger(log_lines()),  # type: ignore[arg-type]  # it writes and flushes, no more
        processors=[_STAMP, _RENDER],
    )
