"""ReplicaState: what the router knows of one replica, and the credit that follows from it.

Credit is what the replica last reported free, less what its sequences are expected to grow by, less what was granted
since and not yet seen in a report. A report and the grants it accepts arrive in one message, so credit is never counted
twice or lost.
"""

from dataclasses import dataclass, field

from cluster.frames import GpuReading, ReplicaInfo, Report
from cluster.router.waiting import Key, Waiting
from engine.request import EngineLoad

SEQUENCE_TOKENS = 128  #: of prompt that one running sequence weighs as much as (docs/simulation.md)


@dataclass(slots=True)
class Granted:
    """A grant on its way through the gateway."""

    gateway: str
    num_blocks: int
    num_tokens: int  #: prompt tokens to compute
    expires_at: float


@dataclass(slots=True, eq=False)
class ReplicaState:
    """One replica. `eq=False`: it is itself and no other."""

    info: ReplicaInfo
    serial: int  #: in the order of announcements
    reported_at: float
    load: EngineLoad | None = None  #: None until the first report: no credit yet
    granted: dict[Key, Granted] = field(default_factory=dict)
    is_draining: bool = False
    comes_back: bool = False  #: it drains no stream, it is being rebuilt
    reserved_for: Waiting | None = None  #: nobody else is granted meanwhile
    gpus: list[GpuReading] = field(default_factory=list)
    last_turn: int = 0  #: number of the last grant to it, among all grants
    num_granted: int = 0
    _growth_blocks: int = 0
    _granted_blocks: int = 0
    _granted_tokens: int = 0

    @property
    def replica_id(self) -> str:
        return self.info.replica_id

    @property
    def credit_slots(self) -> int:
        return 0 if self.load is None else self.load.free_slots - len(self.granted)

    @property
    def credit_blocks(self) -> int:
        """Blocks free when all that runs there has grown as expected."""
        return 0 if self.load is None else self.load.free_blocks - self._growth_blocks - self._granted_blocks

    @property
    def is_empty(self) -> bool:
        """Nothing runs, waits or is on its way there."""
        return self.load is not None and not (self.load.num_running or self.load.num_waiting or self.granted)

    @property
    def num_sequences(self) -> int:
        running = 0 if self.load is None else self.load.num_running + self.load.num_waiting
        return running + len(self.granted)

    @property
    def work_tokens(self) -> int:
        """Work ahead of a new request: prompt tokens still to compute, and what each running sequence stands for."""
        if self.load is None:
            return 0
        num_running = self.load.num_running + len(self.granted)
        return self.load.queued_tokens + self._granted_tokens + SEQUENCE_TOKENS * num_running

    def blocks_for(self, num_tokens: int) -> int:
        """KV blocks that so many tokens and the next one need."""
        return num_tokens // self.info.engine.block_size + 1

    def fits(self, waiting: Waiting) -> bool:
        """Whether there is a slot, and at its expected peak memory. An empty replica takes anything."""
        if self.credit_slots <= 0:
            return False
        wanted = waiting.descriptor.num_prompt_tokens + waiting.num_new_tokens
        return self.credit_blocks >= self.blocks_for(wanted - 1) or self.is_empty

    def grant(self, waiting: Waiting, num_cached_tokens: int, expires_at: float) -> None:
        """Count `waiting` against the credit at once; its lease ends at `expires_at`."""
        self.take_back(waiting.key)
        num_prompt_tokens = waiting.descriptor.num_prompt_tokens
        granted = Granted(
            waiting.gateway,
            self.blocks_for(num_prompt_tokens + waiting.num_new_tokens - 1),
            max(1, num_prompt_tokens - num_cached_tokens),
            expires_at,
        )
        self.granted[waiting.key] = granted
        self._granted_blocks += granted.num_blocks
        self._granted_tokens += granted.num_tokens
        self.num_granted += 1

    def take_back(self, key: Key) -> bool:
        """Return a grant's credit; False if there is none of that key."""
        granted = self.granted.pop(key, None)
        if granted is None:
            return False
        self._granted_blocks -= granted.num_blocks
        self._granted_tokens -= granted.num_tokens
        return True

    def report(self, report: Report, growth_ratio: float, now: float) -> None:
        """Take in a report; `growth_ratio` is the expected part of the allowed output that will really come."""
        self.load, self.reported_at = report.load, now
        growth = int(report.load.remaining_tokens * growth_ratio)
        self._growth_blocks = -(-growth // self.info.engine.block_size)
        for key in report.accepted:
            self.take_back((key[0], key[1]))

    def check_invariants(self) -> None:
        assert self._granted_blocks == sum(granted.num_blocks for granted in self.granted.values())
        assert self._granted_tokens == sum(granted.num_tokens for granted in self.granted.values())
        assert self.reserved_for is None or self.reserved_for.reserved is self
