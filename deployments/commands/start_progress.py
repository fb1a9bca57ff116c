"""StartProgress: what goes on, each phase once, with the seconds since the start."""

import time

from rich.console import Console


class StartProgress:
    """Prints each phase once when it begins or ends, with the seconds since the start."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._shown: set[tuple[str, str, bool]] = set()
        self._names: dict[str, str] = {}

    def say(self, text: str) -> None:
        self._console.print(f"[dim]{time.monotonic() - self._began:6.1f} s[/dim]  {text}")

    def show(self, starting: dict[str, dict[str, float]]) -> None:
        """`starting`: phase -> seconds per replica id; 0 seconds while it lasts."""
        for replica, phases in starting.items():
            name = self._names.setdefault(replica, f"replica {len(self._names) + 1}")
            for phase, seconds in phases.items():
                done = seconds > 0
                if (replica, phase, done) not in self._shown:
                    self._shown.add((replica, phase, done))
                    self.say(f"{name}: {phase}" + (f" took {seconds:.1f} s" if done else " ..."))
