"""What a killed rank costs, with a spare process and without, against the start of a whole replica.

`manta serve` with one replica of tensor-parallel ranks; a client reads a stream, and waits from the kill to the next
token. The text must be the one of an undisturbed stream.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from scripts.chaos_run.served_app import ServedApp, free_port

_WAIT_S = 300.0
_IDLE_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m scripts.bench rebuild`."""
    parser.add_argument("model", help="a Hugging Face folder, or `demo`")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--times", type=int, default=3, help="kills of each kind (the fourth rank ends the replica)")
    parser.add_argument("--tokens", type=int, default=400)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    for num_spares in (1, 0):
        with tempfile.TemporaryDirectory(prefix="manta-rebuild-") as folder:
            settings = (f"tensor_parallel={args.ranks}", f"spare_ranks={num_spares}", "engine.dtype=float32")
            options = [part for setting in settings for part in ("--set", setting)]
            command = ["-m", "deployments.cli", "serve", args.model, "--replicas", "1", "--port", str(free_port())]
            app = ServedApp([*command, *options], Path(folder, "server.log"))
            try:
                app.wait_ready(lambda line: None)
                client = _Client(app, args)
                what = "a rank, a spare waits" if num_spares else "a rank, no spare waits"
                _tell(what, [client.gap_after_kill(client.ranks()[0]) for _ in range(args.times)])
                if num_spares:
                    _tell("the replica", [client.gap_after_kill(client.driver()) for _ in range(args.times)])
            finally:
                app.stop()
    return 0


def _tell(what: str, gaps: list[float]) -> None:
    print(f"  killed: {what}: {', '.join(f'{gap:.2f}' for gap in gaps)} s from the kill to the next token", flush=True)


class _Client:
    def __init__(self, app: ServedApp, args: argparse.Namespace) -> None:
        self._app, self._args = app, args
        self._model = args.model.rstrip("/").rpartition("/")[2]
        self._expected = "".join(text for _, text in self._read())

    def ranks(self) -> list[psutil.Process]:
        """The oldest first; a spare would be the last. They rest when this returns."""
        while True:
            found = [process for process in self._app.note_family() if _is_rank(process)]
            before = [process.cpu_times() for process in found]
            time.sleep(_IDLE_S)
            if found and [process.cpu_times() for process in found] == before:
                return sorted(found, key=psutil.Process.create_time)

    def driver(self) -> psutil.Process:
        """Of the replica."""
        parent = self.ranks()[0].parent()
        assert parent is not None
        return parent

    def gap_after_kill(self, victim: psutil.Process) -> float:
        """The longest time, in seconds, between two tokens of a stream in whose middle the process was killed."""
        texts, last, gap = [], 0.0, 0.0
        for at, text in self._read():
            texts.append(text)
            gap = max(gap, at - last) if last else 0.0
            if len(texts) == self._args.tokens // 4:
                victim.kill()
            if len(texts) >= self._args.tokens // 4:
                last = at
        if "".join(texts) != self._expected:
            raise RuntimeError("the stream went on with other tokens")
        return gap

    def _read(self) -> Iterator[tuple[float, str]]:
        """When each event came, and its text."""
        body = {
            "model": self._model, "prompt": "Once upon a time", "max_tokens": self._args.tokens, "temperature": 0,
            "ignore_eos": True, "stream": True,
        }  # fmt: skip
        with httpx.stream("POST", f"{self._app.url}/v1/completions", json=body, timeout=_WAIT_S) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    yield time.monotonic(), json.loads(line[6:])["choices"][0]["text"]


def _is_rank(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and "engine.rank_process" in process.cmdline()
    return False
