"""What a preflight has found of the ranks of one replica, as values."""

from dataclasses import dataclass

from parallel.layout import RankLayout
from parallel.preflight_facts import Oddity, RankFacts, Transports
from parallel.preflight_speeds import RankSpeeds


@dataclass(frozen=True)
class Reach:
    """A rank as its driver reaches it."""

    round_trip_s: float
    clock_offset_s: float  #: what its clock is ahead of the driver's


@dataclass(frozen=True)
class Preflight:
    """By rank; nothing in it keeps the ranks from serving together."""

    layout: RankLayout
    facts: list[RankFacts]
    reaches: list[Reach]
    transports: Transports
    speeds: list[RankSpeeds]
    oddities: list[Oddity]
    seconds: float

    def __str__(self) -> str:
        """In one line."""
        num_hosts = len({fact.host for fact in self.facts})
        where = "one host" if num_hosts == 1 else f"{num_hosts} hosts"
        ways = [self.transports.tensor] if self.layout.tensor_parallel > 1 else []
        ways += [(self.transports.pipe,)] if self.layout.pipeline_parallel > 1 else []
        over = " and ".join(dict.fromkeys(way for group in ways for way in group)) or "nothing"
        odd = f"{len(self.oddities)} odd" if self.oddities else "none is odd"
        return f"{len(self.facts)} ranks on {where} over {over} checked in {self.seconds:.2f} s, {odd}"
