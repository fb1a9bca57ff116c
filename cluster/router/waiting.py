"""Waiting: one request in a router shard, with what was worked out once when it came."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.frames import Enqueue

if TYPE_CHECKING:
    from cluster.routing.replica_state import ReplicaState

Key = tuple[str, int]  #: (request id, attempt)
AVOID_S = 1.0  #: so long a request is kept from the replicas that have failed it; then any will do


@dataclass(slots=True, eq=False)
class Waiting:
    """A queued request. `eq=False`: it is itself and no other."""

    descriptor: Enqueue
    gateway: str  #: who asked, and gets the answer
    since: float  #: start of its wait, in other shards too
    deadline: float
    cost: int  #: the work it is expected to be, in units of an uncached prompt token
    num_cached_tokens: int = 0  #: of its prompt, believed to be in some replica's cache
    num_new_tokens: int = 1  #: expected output from here on
    avoid_until: float = 0.0
    is_queued: bool = False  #: it is in the queue, its turn over or not
    had_turn: bool = False  #: it has been charged, and stands outside of the order
    reserved: "ReplicaState | None" = None  #: which gets free for it
    _avoid: frozenset[str] = field(init=False)  # a gateway that has just come names all replicas

    def __post_init__(self) -> None:
        self._avoid = frozenset(self.descriptor.avoid)

    @property
    def key(self) -> Key:
        return (self.descriptor.request_id, self.descriptor.attempt)

    @property
    def waits_for_turn(self) -> bool:
        return self.is_queued and not self.had_turn

    @property
    def tenant(self) -> str:
        return self.descriptor.tenant

    @property
    def is_migration(self) -> bool:
        """An earlier attempt was lost: a client may be reading already."""
        return self.descriptor.attempt > 0 or self.descriptor.num_output_tokens > 0

    @property
    def may_be_refused(self) -> bool:
        """For fullness: it waits for its turn, has run nowhere and was let in nowhere else."""
        asked = self.descriptor
        return not (self.had_turn or self.is_migration or asked.num_moves or asked.is_known)

    def avoids(self, replica_id: str, now: float) -> bool:
        """Whether that replica has failed this request, a short while ago."""
        return bool(self._avoid) and now < self.avoid_until and replica_id in self._avoid
