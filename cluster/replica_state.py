"""ReplicaState: what the router knows of one replica, and the credit that follows from it.

Credit is what the replica last reported free, less what was granted since and not yet seen in a report. A report and
the grants it accepts arrive in one message, so credit is never counted twice or lost.
"""

from dataclasses import dataclass, field

from cluster.frames import ReplicaInfo, Report
from engine.request import EngineLoad


@dataclass(slots=True)
class Granted:
    """A grant on its way through the gateway."""

    num_blocks: int
    num_tokens: int
    expires_at: float


@dataclass(slots=True)
class ReplicaState:
    info: ReplicaInfo
    reported_at: float
    load: EngineLoad | None = None  #: None until the first report: no credit yet
    granted: dict[tuple[str, int], Granted] = field(default_factory=dict)
    _granted_blocks: int = 0
    _granted_tokens: int = 0

    @property
    def credit_slots(self) -> int:
        return 0 if self.load is None else self.load.free_slots - len(self.granted)

    @property
    def credit_blocks(self) -> int:
        return 0 if self.load is None else self.load.free_blocks - self._granted_blocks

    @property
    def work_tokens(self) -> int:
        """Work ahead of a new request: prompt tokens still to compute, and one token per running sequence."""
        if self.load is None:
            return 0
        return self.load.queued_tokens + self.load.num_running + self._granted_tokens + len(self.granted)

    def blocks_for(self, num_prompt_tokens: int) -> int:
        """KV blocks that a prompt and its first new token need."""
        return num_prompt_tokens // self.info.engine.block_size + 1

    def has_credit(self, num_prompt_tokens: int) -> bool:
        return self.credit_slots > 0 and self.credit_blocks >= self.blocks_for(num_prompt_tokens)

    def grant(self, key: tuple[str, int], num_prompt_tokens: int, expires_at: float) -> None:
        self.take_back(key)
        granted = Granted(self.blocks_for(num_prompt_tokens), num_prompt_tokens, expires_at)
        self.granted[key] = granted
        self._granted_blocks += granted.num_blocks
        self._granted_tokens += granted.num_tokens

    def take_back(self, key: tuple[str, int]) -> bool:
        """Return a grant's credit; False if there is none of that key."""
        granted = self.granted.pop(key, None)
        if granted is None:
            return False
        self._granted_blocks -= granted.num_blocks
        self._granted_tokens -= granted.num_tokens
        return True

    def report(self, report: Report, now: float) -> None:
        self.load, self.reported_at = report.load, now
        for key in report.accepted:
            self.take_back(key)

    def expire(self, now: float) -> None:
        """Take back grants whose lease has ended (dict order is grant order, so the oldest come first)."""
        while self.granted:
            key, granted = next(iter(self.granted.items()))
            if granted.expires_at > now:
                return
            self.take_back(key)

    def check_invariants(self) -> None:
        assert self._granted_blocks == sum(granted.num_blocks for granted in self.granted.values())
        assert self._granted_tokens == sum(granted.num_tokens for granted in self.granted.values())
