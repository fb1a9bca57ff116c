"""World: router shards, replicas and gateways of a simulated cluster, and the messages between them.

The shards are `cluster.router.router.Router`, the replicas run `engine.scheduler.Scheduler`; simulated are the
gateways, how long a step takes and how long a message travels. Everything follows from the arguments and the seed.
"""

import math
from collections.abc import Callable, Iterator

import msgspec

from cluster.config import RouterConfig
from cluster.frames import Announce, Ended, Enqueue, FromRouter, ReplicaInfo, Report, Spare, ToRouter, Withdraw
from cluster.router.router import Outbox, Router
from cluster.routing.policy import policy_of
from deployments.simulation.cost_model import CostModel
from deployments.simulation.event_queue import EventQueue
from deployments.simulation.faults import Fault, Kill, Slow
from deployments.simulation.gateways import MODEL, Gateways
from deployments.simulation.records import Records, Sample
from deployments.simulation.replica import SimulatedReplica
from deployments.simulation.workload import Arrival
from engine.errors import ConfigError
from engine.request import GenerateRequest, TokenChunk

TICK_S = 0.1
_ALWAYS_ROOM = 1 << 30


class Delays(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds a message takes, in one direction."""

    gateway_router_s: float = 0.0003
    gateway_replica_s: float = 0.0003
    router_replica_s: float = 0.0003  #: reports
    router_router_s: float = 0.0003
    loss_s: float = 0.05  #: until everybody knows that a process has died


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated, besides the requests."""

    cost: CostModel
    router: RouterConfig
    num_replicas: int
    num_gateways: int = 1
    delays: Delays = Delays()
    faults: tuple[Fault, ...] = ()
    timeout_s: float = 600.0
    report_every_s: float | None = None  #: replicas report so often; None: as real ones do
    binds_early: bool = False  #: replicas always say that they have room, so requests wait there: for comparison
    seed: int = 0


class World:
    """Runs one simulation: `run` once, then read `records` and `replicas`."""

    def __init__(self, setup: Setup, arrivals: Iterator[Arrival]) -> None:
        self.setup = setup
        self.queue = EventQueue()
        self.records = Records()
        self.replicas: list[SimulatedReplica] = []  #: all that ever lived
        self.shards = [self._make_router(number) for number in range(setup.router.shards)]
        names = [f"gateway-{index}" for index in range(setup.num_gateways)]
        self.gateways = Gateways(names, setup.router.shards, setup.cost, setup.timeout_s, self.records)
        self.gateways.connect(self)
        self._arrivals = arrivals
        self._by_id: dict[str, tuple[SimulatedReplica, int]] = {}  # known replicas, with their shard
        self._known_lost: set[str] = set()
        self._current: list[SimulatedReplica] = []  # by number
        self._arriving = True
        for shard in self.shards:
            for name in names:
                shard.on_gateway(name)
        for number in range(setup.num_replicas):
            self._current.append(self._start_replica(number, 0))

    def run(self, on_progress: Callable[[int], None] | None = None) -> None:
        """Until the last request has ended; `on_progress` hears now and then how many have come."""
        queue = self.queue
        self._plan_faults()
        self._plan_arrival(None)
        self._tick(None)
        self._sample(None)
        while self._arriving or self.gateways.num_in_flight:
            queue.step()
            if on_progress is not None and queue.num_done % 20_000 == 0:
                on_progress(len(self.records))

    def _make_router(self, number: int) -> Router:
        config = self.setup.router
        return Router(config, policy_of(config, self.setup.seed + number), number)

    # Replicas

    def _start_replica(self, number: int, generation: int) -> SimulatedReplica:
        cost = self.setup.cost
        replica_id = f"replica-{number}" + (f".{generation}" if generation else "")
        info = ReplicaInfo(replica_id, MODEL, "simulated", 0, [], f"host-{number}", cost.engine_info())
        every_s = self.setup.report_every_s
        replica = SimulatedReplica(info, cost, self.queue, self._on_chunks, self._on_report, every_s)
        shard = number % len(self.shards)
        self.replicas.append(replica)
        self._by_id[replica_id] = replica, shard
        self._post(shard, self.shards[shard].on_announce(Announce(info), self.queue.now))
        # heartbeats of many replicas do not fall on the same moment
        self.queue.after(TICK_S * (number % 97) / 97, lambda _: replica.start(), None)
        return replica

    def _on_chunks(self, replica: SimulatedReplica, chunks: list[TokenChunk]) -> None:
        if any(chunk.finish is not None or not chunk.index or chunk.num_cached_tokens for chunk in chunks):
            self.queue.after(self.setup.delays.gateway_replica_s, self._deliver_chunks, chunks)

    def _deliver_chunks(self, chunks: list[TokenChunk]) -> None:
        self.gateways.on_chunks(chunks, self.queue.now)

    def _on_report(self, replica: SimulatedReplica, report: Report) -> None:
        if self.setup.binds_early:
            load = msgspec.structs.replace(report.load, free_slots=_ALWAYS_ROOM, free_blocks=_ALWAYS_ROOM)
            report = Report(load, report.accepted)
        self.queue.after(self.setup.delays.router_replica_s, self._deliver_report, (replica, report))

    def _deliver_report(self, sent: tuple[SimulatedReplica, Report]) -> None:
        replica, report = sent
        _, shard = self._by_id[replica.info.replica_id]
        self._post(shard, self.shards[shard].on_report(replica.info, report, self.queue.now))

    # What gateways send (`gateways.Network`)

    def to_shard(self, shard: int, gateway: str, message: ToRouter) -> None:
        self.queue.after(self.setup.delays.gateway_router_s, self._deliver_to_shard, (shard, gateway, message))

    def _deliver_to_shard(self, sent: tuple[int, str, ToRouter]) -> None:
        number, gateway, message = sent
        shard, now = self.shards[number], self.queue.now
        match message:
            case Enqueue():
                self._post(number, shard.on_enqueue(gateway, message, now))
            case Withdraw():
                self._post(number, shard.on_withdraw(message, now))
            case Ended():
                self._post(number, shard.on_ended(message, now))
            case _:
                raise AssertionError(f"gateways of a simulation do not send {message}")

    def to_replica(self, replica_id: str, request: GenerateRequest) -> bool:
        if replica_id in self._known_lost:
            return False
        self.queue.after(self.setup.delays.gateway_replica_s, self._deliver_request, (replica_id, request))
        return True

    def _deliver_request(self, sent: tuple[str, GenerateRequest]) -> None:
        replica_id, request = sent
        replica, _ = self._by_id[replica_id]
        if replica.is_alive:
            replica.submit(request)
        else:
            lost = TokenChunk(request.request_id, request.attempt, len(request.output_token_ids), [])
            self.queue.after(self.setup.delays.gateway_replica_s, self._tell_loss, [lost])

    def cancel(self, replica_id: str, request_id: str) -> None:
        replica, _ = self._by_id[replica_id]
        self.queue.after(self.setup.delays.gateway_replica_s, replica.cancel, request_id)

    # What shards send

    def _post(self, shard: int, outbox: Outbox) -> None:
        for _, message in outbox:
            self.queue.after(self.setup.delays.gateway_router_s, self._deliver_from_shard, (shard, message))

    def _deliver_from_shard(self, sent: tuple[int, FromRouter]) -> None:
        shard, message = sent
        self.gateways.on_router_frame(shard, message, self.queue.now)

    def _post_spares(self, number: int) -> None:
        for spare in self.shards[number].spare():
            for peer in range(len(self.shards)):
                if peer != number:
                    self.queue.after(self.setup.delays.router_router_s, self._deliver_spare, (peer, spare))

    def _deliver_spare(self, sent: tuple[int, Spare]) -> None:
        number, spare = sent
        self._post(number, self.shards[number].on_spare(spare, self.queue.now))

    # Time

    def _plan_arrival(self, _: None) -> None:
        arrival = next(self._arrivals, None)
        if arrival is None:
            self._arriving = False
        else:
            self.queue.at(arrival.at, self._arrive, arrival)

    def _arrive(self, arrival: Arrival) -> None:
        self.gateways.arrive(arrival)
        self._plan_arrival(None)

    def _tick(self, _: None) -> None:
        now = self.queue.now
        for number, shard in enumerate(self.shards):
            self._post(number, shard.on_tick(now))
            self._post_spares(number)
        self.gateways.on_tick(now)
        self.queue.after(TICK_S, self._tick, None)

    def _sample(self, _: None) -> None:
        held = []
        for replica in self._current:
            if replica.is_alive:
                load = replica.scheduler.load()
                held.append(load.num_running + load.num_waiting)
        mean = sum(held) / max(1, len(held))
        deviation = math.sqrt(sum((n - mean) ** 2 for n in held) / max(1, len(held)))
        num_queued = sum(len(queue) for shard in self.shards for queue in shard.queues().values())
        spread = deviation / self.setup.cost.max_num_seqs
        self.records.sample(Sample(self.queue.now, num_queued, sum(held), spread))
        self.queue.after(self.records.sample_every_s, self._sample, None)

    # Faults

    def _plan_faults(self) -> None:
        for fault in self.setup.faults:
            if fault.replica >= len(self._current):
                raise ConfigError("fault", fault.replica, f"there are {len(self._current)} replicas, counted from 0")
            self.queue.at(fault.at, self._begin_fault, fault)

    def _begin_fault(self, fault: Fault) -> None:
        replica = self._current[fault.replica]
        match fault:
            case Slow():
                replica.slowness = fault.factor
                if fault.for_s is not None:
                    self.queue.after(fault.for_s, self._recover, fault.replica)
            case Kill():
                self.queue.after(self.setup.delays.loss_s, self._notice_death, (replica, replica.die()))
                if fault.back_after_s is not None:
                    self.queue.after(fault.back_after_s, self._replace, fault.replica)

    def _recover(self, number: int) -> None:
        self._current[number].slowness = 1.0

    def _replace(self, number: int) -> None:
        self._current[number] = self._start_replica(number, len(self.replicas))

    def _notice_death(self, dead: tuple[SimulatedReplica, list[TokenChunk]]) -> None:
        replica, chunks = dead
        _, shard = self._by_id[replica.info.replica_id]
        self._known_lost.add(replica.info.replica_id)
        self._post(shard, self.shards[shard].on_replica_lost(replica.info))
        self._tell_loss(chunks)

    def _tell_loss(self, chunks: list[TokenChunk]) -> None:
        self.gateways.on_death(chunks, self.queue.now)
