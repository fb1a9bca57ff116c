"""Before anything is proved: the oracle must find every planted bug, and nothing where none is."""

import asyncio
from collections.abc import Callable

from engine.errors import MantaError
from scripts.chaos_run.campaign import Workload
from scripts.chaos_run.oracle import judge
from scripts.chaos_run.planted_bugs import planted_bugs
from scripts.chaos_run.stream_client import Receive, StreamClient, as_it_comes
from scripts.chaos_run.workload import Ask, Expected

NUM_CLEAN = 8
FIRST_NUMBER = 10_000_000  #: of its requests, away from the campaign's

MakeClient = Callable[[Receive], StreamClient]


class BlindOracle(MantaError):
    """A planted bug was not caught, or an honest answer was called wrong."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"the oracle is not to be trusted: {self.why}"


async def check_oracle(workload: Workload, make_client: MakeClient) -> int:
    """How many planted bugs were caught: all, or BlindOracle is raised."""
    bugs = list(planted_bugs())
    asks = _single_streams(workload, len(bugs) + NUM_CLEAN)
    receives: list[tuple[str, Receive]] = [*bugs, *[("", as_it_comes)] * NUM_CLEAN]
    journals = await asyncio.gather(
        *(make_client(receive).run(ask) for (ask, _), (_, receive) in zip(asks, receives, strict=True))
    )
    for journal, (_, expected), (bug, _) in zip(journals, asks, receives, strict=True):
        violations = judge(journal, expected).violations
        if bug and not violations:
            raise BlindOracle(f"planted and not caught: {bug} (request {journal.ask.name})")
        if not bug and violations:
            raise BlindOracle(f"without a fault, {violations[0]}")
    return len(bugs)


def _single_streams(workload: Workload, count: int) -> list[tuple[Ask, list[Expected]]]:
    """Streams of one choice, long enough for the planted bugs."""
    found = []
    number = FIRST_NUMBER
    while len(found) < count:
        ask, expected = workload.ask(number)
        number += 1
        if ask.stream and ask.n == 1 and len(expected[0].token_ids) > 12:
            found.append((ask, expected))
    return found
