"""What goes wrong in a simulation, and when."""

import re

import msgspec

from engine.errors import ConfigError

_KILL = re.compile(r"kill:(\d+)@([\d.]+)(?:\+([\d.]+))?")
_SLOW = re.compile(r"slow:(\d+)x([\d.]+)(?:@([\d.]+)(?:\+([\d.]+))?)?")


class Kill(msgspec.Struct, frozen=True):
    """A replica dies; a new one takes its place `back_after_s` later, or never."""

    replica: int  #: by number, from 0
    at: float
    back_after_s: float | None = None


class Slow(msgspec.Struct, frozen=True):
    """A replica's steps take `factor` times as long, from `at` on, for `for_s` seconds or to the end."""

    replica: int
    factor: float
    at: float = 0.0
    for_s: float | None = None


Fault = Kill | Slow


def parse_fault(text: str) -> Fault:
    """`kill:3@10` (back with `+20`), or `slow:3x2` (from second 10 for 20 s with `@10+20`). Raises `ConfigError`."""
    if match := _KILL.fullmatch(text):
        replica, at, back = match.groups()
        return Kill(int(replica), float(at), None if back is None else float(back))
    if match := _SLOW.fullmatch(text):
        replica, factor, at, for_s = match.groups()
        if float(factor) > 0.0:
            return Slow(int(replica), float(factor), float(at or 0.0), None if for_s is None else float(for_s))
    raise ConfigError("fault", text, "give kill:REPLICA@T, kill:REPLICA@T+BACK, slow:REPLICAxF or slow:REPLICAxF@T+FOR")
