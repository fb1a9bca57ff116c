"""Whatever comes, in whatever order: no request is lost or granted twice, and every request ends.

Replicas are modelled as slots and blocks that really hold what was submitted. Requests come from two gateways and three
tenants, migrate, avoid replicas and ask for weights; replicas come, leave, fail and are lost; another shard takes some.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.config import Policy, RouterConfig, TenantConfig
from cluster.frames import (
    Announce,
    Condemn,
    Ended,
    Enqueue,
    Grant,
    Leave,
    Move,
    Outcome,
    Refuse,
    ReplicaInfo,
    Report,
    Spare,
    Withdraw,
)
from cluster.router.circuit_breaker import BreakerState
from cluster.router.router import Outbox, Router
from cluster.routing.policy import policy_of
from engine.request import EngineLoad
from tests.cluster.router_world import replica_info

NUM_BLOCKS = 64  # of 4 tokens, as in `replica_info`
LONG_S = 1e6


@dataclass
class Engine:
    """A replica as it really is."""

    info: ReplicaInfo
    slots: int
    left: bool = False
    running: dict[str, Enqueue] = field(default_factory=dict)
    accepted: list[tuple[str, int]] = field(default_factory=list)

    def load(self) -> EngineLoad:
        used = sum(asked.num_prompt_tokens // 4 + 1 for asked in self.running.values())
        free = max(0, NUM_BLOCKS - used)
        remaining = sum(asked.max_tokens for asked in self.running.values())
        running = len(self.running)
        return EngineLoad(1, running, 0, self.slots - running, free, 0, remaining_tokens=remaining)


class RouterMachine(RuleBasedStateMachine):
    @initialize(policy=st.sampled_from(Policy), max_queued=st.sampled_from([6, 1000]))
    def begin(self, policy: Policy, max_queued: int) -> None:
        config = RouterConfig(
            policy=policy,
            shards=2,
            max_queued_requests=max_queued,
            lease_s=1.0,
            report_timeout_s=LONG_S,
            tenants={"heavy": TenantConfig(weight=3.0)},
        )
        self.shard = Router(config, policy_of(config))
        self.now, self.num_named, self.num_replicas = 0.0, 0, 0
        self.engines: dict[str, Engine] = {}
        self.waiting: dict[tuple[str, int], tuple[str, Enqueue]] = {}  # asked, and not yet answered: by gateway
        self.in_hand: dict[tuple[str, int], tuple[str, Enqueue, float]] = {}  # granted, not submitted: until when
        self.condemned: set[bytes] = set()
        self.come(2, "r0")

    def take(self, outbox: Outbox) -> None:
        """What the gateways hear."""
        for gateway, message in outbox:
            if not isinstance(message, Grant | Refuse | Move):
                continue
            key = (message.request_id, message.attempt)
            assert key in self.waiting, f"{message} answers what does not wait"
            asker, asked = self.waiting.pop(key)
            assert asker == gateway, "answered to another gateway"
            if isinstance(message, Grant):
                engine = self.engines[message.replica_id]
                assert not engine.left, "granted a replica that drains"
                assert asked.weights_revision in ("", engine.info.engine.weights_revision)
                assert asked.digest not in self.condemned
                self.in_hand[key] = (message.replica_id, asked, self.now + message.lease_s)
            elif isinstance(message, Refuse) and asked.attempt:
                assert message.code in ("deadline_exceeded", "no_ready_replica", "poison_request"), message.code

    def report(self, engine: Engine) -> None:
        accepted, engine.accepted = engine.accepted, []
        self.take(self.shard.on_report(engine.info, Report(engine.load(), accepted), self.now))

    # Replicas

    @rule(slots=st.integers(1, 3), revision=st.sampled_from(["r0", "r0", "r1"]))
    def come(self, slots: int, revision: str) -> None:
        info = replica_info(f"replica-{self.num_replicas}", revision=revision)
        self.num_replicas += 1
        self.engines[info.replica_id] = Engine(info, slots)
        self.take(self.shard.on_announce(Announce(info), self.now))
        self.report(self.engines[info.replica_id])

    @precondition(lambda self: self.engines)
    @rule(data=st.data(), how=st.sampled_from(["lost", "leave", "drain", "report"]))
    def replica_event(self, data: st.DataObject, how: str) -> None:
        engine = self.engines[data.draw(st.sampled_from(sorted(self.engines)))]
        if how == "report":
            self.report(engine)
            return
        if how == "lost":
            del self.engines[engine.info.replica_id]
            self.take(self.shard.on_replica_lost(engine.info))
            return
        engine.left = True
        if how == "leave":
            self.take(self.shard.on_leave(engine.info, Leave(), self.now))
        else:
            assert self.shard.drain(engine.info.replica_id) is not None

    # Requests

    @rule(
        tokens=st.sampled_from([1, 9, 40, 300]),
        max_tokens=st.sampled_from([1, 8, 64]),
        tenant=st.sampled_from(["heavy", "a", "b"]),
        priority=st.integers(0, 1),
        timeout_s=st.sampled_from([0.5, 5.0, LONG_S]),
        special=st.sampled_from(["", "", "migrates", "avoids", "avoids", "weights", "weights", "digest", "moved"]),
        gateway=st.sampled_from(["g", "h"]),
    )
    def arrive(
        self, tokens: int, max_tokens: int, tenant: str, priority: int, timeout_s: float, special: str, gateway: str
    ) -> None:
        self.num_named += 1
        asked = Enqueue(
            f"q{self.num_named}",
            1 if special in ("migrates", "avoids", "weights") else 0,
            "m",
            tenant,
            priority,
            timeout_s,
            tokens,
            max_tokens,
            block_hashes=[b"p%d" % number for number in range(tokens // 4)],
            session=f"s{tokens}",
            digest=b"evil" if special == "digest" else b"",
            weights_revision="r1" if special == "weights" else "",
            avoid=[f"replica-{self.num_replicas - 1}"] if special == "avoids" else [],
            waited_s=2.0 if special == "moved" else 0.0,
            num_moves=3 if special == "moved" else 0,
        )
        self.waiting[asked.request_id, asked.attempt] = (gateway, asked)
        self.take(self.shard.on_enqueue(gateway, asked, self.now))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), again=st.booleans())
    def withdraw_or_ask_again(self, data: st.DataObject, again: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.waiting)))
        gateway, asked = self.waiting[key]
        if again:
            self.take(self.shard.on_enqueue(gateway, asked, self.now))
        else:
            del self.waiting[key]
            self.take(self.shard.on_withdraw(Withdraw(*key), self.now))

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data(), how=st.sampled_from(["use", "use", "give back", "lost on its way"]))
    def use_grant(self, data: st.DataObject, how: str) -> None:
        key = data.draw(st.sampled_from(sorted(self.in_hand)))
        replica_id, asked, until = self.in_hand.pop(key)
        if how == "give back":
            self.take(self.shard.on_withdraw(Withdraw(*key), self.now))
            return
        if how == "lost on its way":
            self.waiting[key] = ("g", asked)
            self.take(self.shard.on_enqueue("g", asked, self.now))
            return
        engine = self.engines.get(replica_id)
        if engine is None or self.now >= until:
            return
        engine.running[asked.request_id] = asked
        engine.accepted.append(key)
        assert len(engine.running) <= engine.slots, "more was granted than the replica has slots"
        self.report(engine)

    @precondition(lambda self: any(engine.running for engine in self.engines.values()))
    @rule(data=st.data(), outcome=st.sampled_from(Outcome), finished=st.booleans(), output=st.integers(0, 8))
    def end(self, data: st.DataObject, outcome: Outcome, finished: bool, output: int) -> None:
        names = sorted(name for name, engine in self.engines.items() if engine.running)
        engine = self.engines[data.draw(st.sampled_from(names))]
        asked = engine.running.pop(data.draw(st.sampled_from(sorted(engine.running))))
        ended = Ended(
            asked.request_id, asked.attempt, "m", asked.tenant, engine.info.replica_id, outcome, output, 0, finished
        )
        self.take(self.shard.on_ended(ended, self.now))
        self.report(engine)

    @rule(gateway=st.sampled_from(["g", "h"]))
    def gateway_lost(self, gateway: str) -> None:
        self.waiting = {key: (asker, asked) for key, (asker, asked) in self.waiting.items() if asker != gateway}
        self.shard.on_gateway_lost(gateway)

    @rule()
    def condemn(self) -> None:
        self.condemned.add(b"evil")
        self.take(self.shard.on_condemn(Condemn(b"evil"), self.now))

    @rule(slots=st.integers(1, 3), tokens=st.integers(0, 400))
    def other_shard_has_room(self, slots: int, tokens: int) -> None:
        before = len(self.waiting)
        self.take(self.shard.on_spare(Spare(1, "m", slots, tokens), self.now))
        assert before - len(self.waiting) <= slots
        for spare in self.shard.spare():
            assert spare.num_slots > 0

    @rule(seconds=st.floats(0.01, 3.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.shard.on_tick(self.now))
        assert all(asked.timeout_s > 0 for _, asked in self.waiting.values())

    @invariant()
    def consistent(self) -> None:
        self.shard.check_invariants()
        queues = self.shard.queues().values()
        queued = {key for queue in queues for name in ("g", "h") for key in queue.of_gateway(name)}
        assert queued == set(self.waiting), "a request is neither waiting nor answered"
        for replica in self.shard.replicas():
            assert replica.load is None or replica.credit_slots >= 0

    def teardown(self) -> None:
        """Everything that runs ends, time passes: each request is answered; by a grant, where some replica may."""
        if not hasattr(self, "shard"):
            return
        for _ in range(300):
            for key, (replica_id, asked, _) in list(self.in_hand.items()):
                del self.in_hand[key]
                if replica_id in self.engines:
                    self.engines[replica_id].accepted.append(key)
                    ended = Ended(key[0], key[1], "m", asked.tenant, replica_id, Outcome.OK, 1, 0, True)
                    self.take(self.shard.on_ended(ended, self.now))
            for engine in self.engines.values():
                engine.running = {}
                self.report(engine)
            self.now += 0.5
            self.take(self.shard.on_tick(self.now))
            self.consistent()
            if not self.waiting and not self.in_hand:
                break
        usable = [engine.info.engine.weights_revision for engine in self.engines.values() if not engine.left]
        for _, asked in self.waiting.values():
            wanted = asked.weights_revision
            assert wanted not in usable if wanted else not usable, f"{asked} waits although a replica is empty"
        breakers = {replica["breaker"] for replica in self.shard.status(self.now)["replicas"]}
        assert breakers <= {str(state) for state in BreakerState}
        self.take(self.shard.on_tick(self.now + 2 * LONG_S))
        assert not self.waiting


RouterMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRouterMachine = RouterMachine.TestCase
