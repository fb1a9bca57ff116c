"""`python -m scripts.fuzz TARGET --runs N`: what a stranger may send, at one of the parsers that read it.

`all` takes one target after the other. With `--atheris` (`pip install atheris`) the inputs are led by what code they
reach; without it Hypothesis draws them. A fault is shown with the smallest input that has it, and the exit code is 1.
"""

import argparse
import importlib
import sys
import time
from contextlib import nullcontext
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings


def fuzz(name: str, target: Any, runs: int) -> None:
    """Raises on the first fault."""
    started = time.monotonic()
    limits = settings(
        max_examples=runs,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    limits(given(target.given)(target.check))()
    print(f"{name}: {runs} inputs, no fault, {time.monotonic() - started:.0f} s", flush=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Try what a stranger may send.")
    parser.add_argument("target", help="one of those in tests/fuzz/targets.py, or all")
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs per target (default: a million)")
    parser.add_argument("--atheris", action="store_true", help="led by coverage; one target")
    arguments = parser.parse_args()
    atheris = importlib.import_module("atheris") if arguments.atheris else None
    watched = atheris.instrument_imports(include=["cluster", "engine"]) if atheris is not None else nullcontext()
    with watched:
        targets = importlib.import_module("tests.fuzz.targets").TARGETS
    names = list(targets) if arguments.target == "all" and atheris is None else [arguments.target]
    if not set(names) <= set(targets):
        parser.error(f"{arguments.target} is none of: {', '.join(targets)}")
    if atheris is not None:
        target = targets[arguments.target]
        test = settings(deadline=None, database=None)(given(target.given)(target.check))
        atheris.Setup([sys.argv[0], f"-runs={arguments.runs}"], test.hypothesis.fuzz_one_input)
        atheris.Fuzz()  # ends the process
    for name in names:
        fuzz(name, targets[name], arguments.runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
