"""Ray's own launcher (`ray up`, `ray exec`, `ray down`) as a process; its phases are shown, its errors kept."""

import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from deployments.commands.cluster_file import ClusterFile
from engine.errors import MantaError

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
#: What `ray up` says of its way: "[6/7] Running setup commands", and under it "(0/2) cd ~/manta && scripts/setup".
_PHASE = re.compile(r"^\s*(\[\d+/\d+\]|\(\d+/\d+\)|<\d+/\d+>|Launched|Acquiring)")
_TIME = re.compile(r"^\s*\d+\.\d s\s+")  #: since the start of the command there; here it is since ours
_BEGINS = "--- manta ---"  #: what comes before it is of Ray and ssh
_NUM_KEPT = 40
#: What ssh says of itself.
_NOISE = (
    "Shared connection to",
    "Connection to",
    "Warning: Permanently added",
    "bash: cannot set terminal",
    "bash: no job",
)


class LaunchFailed(MantaError):
    """A command of Ray's launcher ended with an error; `said` is the end of what it said."""

    def __init__(self, what: str, code: int, said: str) -> None:
        super().__init__(what, code, said)
        self.what, self.code, self.said = what, code, said

    def __str__(self) -> str:
        return (
            f"{self.what} ended with {self.code}:\n{self.said}" if self.said else f"{self.what} ended with {self.code}"
        )


def launch(cluster: ClusterFile, words: list[str], show: Callable[[str], None]) -> None:
    """`ray up` or `ray down` on the file, its phases shown. Raises `LaunchFailed`."""
    _run(
        cluster, words[0], [*words, str(cluster.path)], lambda line: show(line.strip()) if _PHASE.match(line) else None
    )


def run_on_head(cluster: ClusterFile, command: str, show: Callable[[str], None]) -> None:
    """Run a command of Manta on the head, what it says shown. Raises `LaunchFailed`."""
    has_begun = False

    def hear(line: str) -> None:
        nonlocal has_begun
        if has_begun:
            show(_TIME.sub("", line))
        has_begun = has_begun or line == _BEGINS

    _run(cluster, "exec", ["exec", str(cluster.path), f"echo {_BEGINS}; {command}"], hear)


def make_token() -> bool:
    """The token that all hosts of a cluster must have: written if there is none. Whether it was."""
    if os.environ.get("RAY_AUTH_TOKEN_PATH") or (Path.home() / ".ray" / "auth_token").exists():
        return False
    command = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LaunchFailed("ray get-auth-token", done.returncode, done.stderr.strip())
    return True


def _run(cluster: ClusterFile, what: str, words: list[str], show: Callable[[str], None]) -> None:
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    if (
        cluster.is_local
    ):  # autoscaler v2 counts the head among the workers, of which the file allows as many as it names
        environment.setdefault("RAY_UP_enable_autoscaler_v2", "0")
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", words[0], "--log-style=pretty", "--log-color=false", *words[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    )
    kept: deque[str] = deque(maxlen=_NUM_KEPT)
    try:
        for raw in process.stdout or ():
            line = _ESCAPES.sub("", raw).rstrip()
            if line and not line.startswith(_NOISE):
                kept.append(line)
                show(line)
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code:
        raise LaunchFailed(f"ray {what}", code, "\n".join(kept))
