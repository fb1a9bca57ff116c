"""`python -m scripts.fuzz TARGET --runs N`: what a stranger may send, at one of the parsers that read it.

`all` takes one target after the other. With `--atheris` (`pip install atheris`) the inputs are led by what code they
reach; without it Hypothesis draws them. A fault is shown with the smallest input that has it, and the exit code is 1.
"""

import argparse
import sys
import time

from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.targets import TARGETS


def fuzz(name: str, runs: int) -> None:
    """Raises on the first fault."""
    target = TARGETS[name]
    started = time.monotonic()
    phases = (Phase.generate, Phase.shrink)
    limits = settings(
        max_examples=runs, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck)
    )
    limits(given(target.given)(target.check))()
    print(f"{name}: {runs} inputs, no fault, {time.monotonic() - started:.0f} s", flush=True)


def fuzz_led(name: str, runs: int) -> None:
    """By coverage; ends the process."""
    import atheris

    atheris.instrument_all()
    target = TARGETS[name]
    test = settings(deadline=None, database=None)(given(target.given)(target.check))
    atheris.Setup([sys.argv[0], f"-runs={runs}"], test.hypothesis.fuzz_one_input)
    atheris.Fuzz()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Try what a stranger may send.")
    parser.add_argument("target", choices=["all", *TARGETS])
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs per target (default: a million)")
    parser.add_argument("--atheris", action="store_true", help="led by coverage; one target")
    arguments = parser.parse_args()
    if arguments.atheris:
        if arguments.target == "all":
            parser.error("--atheris takes one target")
        fuzz_led(arguments.target, arguments.runs)
    for name in TARGETS if arguments.target == "all" else [arguments.target]:
        fuzz(name, arguments.runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
