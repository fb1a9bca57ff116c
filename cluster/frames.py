"""The messages of the token transport; `engine.framing` is how they travel.

Each direction has its own closed set of messages, so a peer can say only what its role may say. Times are durations,
never another host's clock.

A connection opens with `Challenge` (from the side that listens) and `Hello` (a MAC over the nonce with the cluster
secret); after that:

    gateway -> router   Enqueue, Withdraw, Ended, Condemn,    router -> gateway   Grant, Refuse, Move, Pulse,
                        Keep, Journal, Release, Fetch,                            ReplicaUp, ReplicaDown,
                        Figures, Scrape,                                          Stored, Taken, Scraped,
                        KeepReports, FindReport, QuotaTurn                        ReportFound, QuotaAnswer
    replica -> router   Announce, Report, Leave, Vitals       router -> replica   Drain, Pulse
    gateway -> replica  Submit, Cancel                        replica -> gateway  Tokens, Failed, Beat
    router -> router    Spare
"""

from enum import StrEnum

import msgspec

from cluster.metrics.snapshot import Snapshot
from cluster.quotas.bucket import Ask, Change, Reply
from engine.config import EngineInfo
from engine.framing import Challenge as Challenge
from engine.framing import Frame as Frame
from engine.framing import FrameDecoder as FrameDecoder
from engine.framing import FrameError as FrameError
from engine.framing import Hello as Hello
from engine.framing import encode as encode
from engine.framing import prove as prove
from engine.framing import proven as proven
from engine.request import EngineLoad, GenerateRequest, TokenChunk


class ReplicaInfo(msgspec.Struct, frozen=True):
    """Who a replica is and where it listens."""

    replica_id: str
    model: str  #: served name
    host: str
    port: int
    pids: list[int]  #: process id per rank, rank 0 first
    node: str
    engine: EngineInfo
    rank_hosts: list[str] = []  #: address per rank, where they may be on others than `host`


class Enqueue(Frame, frozen=True, tag="enqueue"):
    """A request's descriptor: what the shard decides on. The prompt stays with the gateway."""

    request_id: str
    attempt: int
    model: str
    tenant: str
    priority: int
    timeout_s: float
    num_prompt_tokens: int  #: all the engine must know before its first step: prompt and journal
    max_tokens: int  #: most tokens still to come
    num_output_tokens: int = 0  #: of `num_prompt_tokens`, those that earlier attempts have emitted
    block_hashes: list[bytes] = []  #: of the leading full blocks (`engine.block_hash`), first to last; may be cut short
    session: str = ""  #: what session affinity keeps together; empty: nothing
    digest: bytes = b""  #: names what is asked, whoever asks again (poison rule)
    weights_revision: str = ""  #: run only on these weights; empty: on any (nothing is emitted yet)
    avoid: list[str] = []  #: replicas that have failed this request
    waited_s: float = 0.0  #: before it was asked for again, here or elsewhere
    num_moves: int = 0  #: from shard to shard
    is_known: bool = False  #: some shard let this attempt in before: no bound of a queue turns it away


class Withdraw(Frame, frozen=True, tag="withdraw"):
    """The client left, or the gateway gives a grant back."""

    request_id: str
    attempt: int


class Outcome(StrEnum):
    """How an attempt ended, as its replica's circuit breaker counts it."""

    OK = "ok"
    FAILED = "failed"  #: connection, engine error, timeout or lost progress
    NEUTRAL = "neutral"  #: the client left, the request was at fault, or the replica drained


class Ended(Frame, frozen=True, tag="ended"):
    """An attempt that was submitted is over: what it came to. One per attempt, whatever its outcome."""

    request_id: str
    attempt: int
    model: str
    tenant: str
    replica_id: str
    outcome: Outcome
    num_output_tokens: int  #: emitted by this attempt
    num_cached_tokens: int = 0
    finished: bool = False  #: the request has ended with it


class Condemn(Frame, frozen=True, tag="condemn"):
    """A request of this digest has killed two replicas: refuse it for a while."""

    digest: bytes


class Keep(Frame, frozen=True, tag="keep"):
    """Keep this stream for whoever resumes it. Replaces what is kept of it by an earlier epoch or the same gateway."""

    stream: str
    epoch: int  #: how often it has been resumed
    tenant: str  #: nobody else may fetch it
    ttl_s: float  #: counts from `Release`, or from the loss of the gateway
    call: bytes  #: what was asked; only gateways read it
    journal: list[bytes] = []  #: what was emitted so far, oldest first; only gateways read it
    model: str = ""  #: that runs it


class Journal(Frame, frozen=True, tag="journal"):
    """More of kept streams, (stream, epoch, entry) each: all that one wake-up of the gateway brought."""

    entries: list[tuple[str, int, bytes]]


class Release(Frame, frozen=True, tag="release"):
    """The gateway runs this stream no longer: it has ended, or its client left."""

    stream: str
    epoch: int


class Fetch(Frame, frozen=True, tag="fetch"):
    """Hand this stream over: whoever runs it is to stop. Answered by `Stored`."""

    ticket: int
    stream: str
    tenant: str
    models: list[str] | None = None  #: it must be of one of these; None: of any


class Figures(Frame, frozen=True, tag="figures"):
    """What the gateway counts, told every few seconds."""

    snapshot: Snapshot


class Scrape(Frame, frozen=True, tag="scrape"):
    """Somebody wants the metrics of all: tell what you know. Answered by `Scraped`."""

    ticket: int


class QuotaTurn(Frame, frozen=True, tag="quota"):
    """All that a gateway asks of the shared limits, and tells them, at once. The next one follows the answer."""

    number: int  #: of this gateway's turns, rising
    num_gateways: int  #: among whom the limits are divided
    epoch: str = ""  #: the book that has answered last; empty: none has
    seen: float = 0.0  #: that book's clock, then
    changes: list[Change] = []
    asks: list[Ask] = []


class QuotaAnswer(Frame, frozen=True, tag="quota"):
    """The answer to the `QuotaTurn` of that number."""

    number: int
    epoch: str
    seen: float
    is_back: bool  #: the gateway has been away: nothing is decided, it is to ask again
    replies: list[Reply] = []


class Grant(Frame, frozen=True, tag="grant"):
    """Submit this request to that replica within `lease_s`."""

    request_id: str
    attempt: int
    replica_id: str
    lease_s: float
    waited_s: float = 0.0  #: from asking a shard to this grant, as the shard counts: less the messages' ways


class Refuse(Frame, frozen=True, tag="refuse"):
    """The shard will not run this request; `code` is that of a `cluster.errors` class."""

    request_id: str
    attempt: int
    code: str
    message: str
    retry_after_s: float | None = None


class Move(Frame, frozen=True, tag="move"):
    """Enqueue this request at that shard, which has replicas with nothing to do; here it waits no longer."""

    request_id: str
    attempt: int
    shard: int


class Pulse(Frame, frozen=True, tag="pulse"):
    """The shard's event loop turns: sent several times a second."""


class Drain(Frame, frozen=True, tag="drain"):
    """Admit nothing more, let short streams end, hand the others back, then end the process."""


class Stored(Frame, frozen=True, tag="stored"):
    """The answer to a `Fetch`: the stream as it is kept, and the epoch that is now the asker's."""

    ticket: int
    epoch: int = 0
    call: bytes = b""  #: empty: this shard keeps no such stream for this tenant
    journal: list[bytes] = []


class KeepReports(Frame, frozen=True, tag="keep_reports"):
    """Reports of calls that have ended: (tenant, call id, request id, report), for whoever asks."""

    reports: list[tuple[str, str, str, bytes]]


class FindReport(Frame, frozen=True, tag="find_report"):
    """The report of this tenant's call with that call id or request id. Answered by `ReportFound`."""

    ticket: int
    name: str
    tenant: str


class ReportFound(Frame, frozen=True, tag="report_found"):
    """Empty if there is none."""

    ticket: int
    report: bytes = b""


class Taken(Frame, frozen=True, tag="taken"):
    """The stream has passed into other hands: stop it, if you run it as of this epoch or an earlier one."""

    stream: str
    epoch: int


class Scraped(Frame, frozen=True, tag="scraped"):
    """The answer to a `Scrape`: the shard, its replicas, gateways that have told it, and who has ended lately."""

    ticket: int
    snapshots: list[Snapshot]


class ReplicaUp(Frame, frozen=True, tag="up"):
    replica: ReplicaInfo


class ReplicaDown(Frame, frozen=True, tag="down"):
    replica_id: str


class Announce(Frame, frozen=True, tag="announce"):
    """First message of a replica."""

    replica: ReplicaInfo


class Report(Frame, frozen=True, tag="report"):
    """What a replica holds; `accepted` are the (request id, attempt) submitted since its last report."""

    load: EngineLoad
    accepted: list[tuple[str, int]]


class Leave(Frame, frozen=True, tag="leave"):
    """No more grants to the replica; what it runs goes on. It drains, or will announce itself again."""

    comes_back: bool = False


class GpuReading(msgspec.Struct, frozen=True, array_like=True):
    """One device of a replica, as NVML reads it. None: it does not say."""

    gpu: str  #: its UUID
    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    utilization: float | None = None  #: 0 to 1
    power_watts: float | None = None
    fault: str = ""  #: empty: none


class Vitals(Frame, frozen=True, tag="vitals"):
    """The replica's devices, told every few seconds where they can be read."""

    gpus: list[GpuReading]


class Spare(Frame, frozen=True, tag="spare"):
    """Shard to shard: replicas of `model` here have nothing to do, the queue is empty; move me some requests."""

    shard: int
    model: str
    num_slots: int
    num_tokens: int  #: what the free KV blocks hold


class Submit(Frame, frozen=True, tag="submit"):
    request: GenerateRequest


class Cancel(Frame, frozen=True, tag="cancel"):
    request_id: str
    attempt: int


class Tokens(Frame, frozen=True, tag="tokens"):
    """All that one engine step made for one gateway."""

    step: int
    chunks: list[TokenChunk]


class Failed(Frame, frozen=True, tag="failed"):
    """This attempt will give no more tokens."""

    request_id: str
    attempt: int
    message: str
    retryable: bool = False  #: another replica may do better; else the request itself is at fault


class Beat(Frame, frozen=True, tag="beat"):
    """The replica's event loop turns, and so far its engine has come; sent several times a second."""

    progress: int  #: moves while the engine computes, also inside a long step
    is_busy: bool  #: a step is being computed
    patience_s: float  #: `progress` may stand still so long in an honest step
    takes_requests: bool = True  #: False: it drains, or its engine has ended


FromGateway = (
    Enqueue
    | Withdraw
    | Ended
    | Condemn
    | Keep
    | Journal
    | Release
    | Fetch
    | Figures
    | Scrape
    | KeepReports
    | FindReport
    | QuotaTurn
)
ToRouter = FromGateway | Announce | Report | Leave | Vitals | Spare
FromRouter = (
    Grant
    | Refuse
    | Move
    | Pulse
    | Drain
    | ReplicaUp
    | ReplicaDown
    | Stored
    | Taken
    | Scraped
    | ReportFound
    | QuotaAnswer
)
ToReplica = Submit | Cancel
FromReplica = Tokens | Failed | Beat
