"""Whatever happens to replicas, shards and frames: a stream is the chain's, or it ends with an error."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.request import FinishReason
from tests.cluster.fleet_in_a_box import BoxReplica, Fleet

WHICH = st.integers(0, 7)


class Streams(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()
        for number in range(3):
            self.fleet.ask([number], 8)

    def replica(self, which: int) -> BoxReplica:
        return self.fleet.replicas[which % len(self.fleet.replicas)]

    @rule(prompt=st.lists(st.integers(0, 9), min_size=1, max_size=9), max_tokens=st.integers(1, 12))
    def ask(self, prompt: list[int], max_tokens: int) -> None:
        self.fleet.ask(prompt, max_tokens)

    @rule(shard=st.integers(0, 1), which=WHICH, replica=WHICH, keep=st.booleans())
    def grant(self, shard: int, which: int, replica: int, keep: bool) -> None:
        waiting = list(self.fleet.shards[shard].waiting)
        if waiting and self.fleet.shards[shard].is_open:
            self.fleet.grant(shard, waiting[which % len(waiting)], self.replica(replica).replica_id, keep)

    @rule(num_steps=st.integers(1, 3))
    def work(self, num_steps: int) -> None:
        self.grant_all()
        for _ in range(num_steps):
            for replica in self.fleet.replicas:
                replica.step()
        for replica in self.fleet.replicas:
            while replica.wire and not replica.is_frozen:
                self.fleet.deliver(replica)

    @rule()
    def grant_all(self) -> None:
        for number, shard in enumerate(self.fleet.shards):
            for count, key in enumerate(list(shard.waiting) if shard.is_open else []):
                if key in shard.waiting:
                    self.fleet.grant(number, key, self.replica(count).replica_id)

    @rule(which=WHICH)
    def step(self, which: int) -> None:
        self.replica(which).step()

    @rule(which=WHICH, at=st.sampled_from([0, 0, 0, 1]), keep=st.booleans())
    def deliver(self, which: int, at: int, keep: bool) -> None:
        replica = self.replica(which)
        if len(replica.wire) > at:
            self.fleet.deliver(replica, at, keep)

    @rule(index=st.integers(0, 99))
    def deliver_old(self, index: int) -> None:
        self.fleet.deliver_old(index)

    @rule(which=WHICH, num_delivered=st.integers(0, 3))
    def lose_replica(self, which: int, num_delivered: int) -> None:
        self.fleet.lose_replica(self.replica(which), num_delivered)

    @rule(which=WHICH, error=st.sampled_from(["", "the rank is gone"]))
    def hand_back(self, which: int, error: str) -> None:
        self.replica(which).end_all(FinishReason.MIGRATE, error)

    @rule(which=WHICH)
    def not_finite(self, which: int) -> None:
        self.replica(which).end_all(FinishReason.ERROR, "not finite")

    @rule(which=WHICH)
    def refuse(self, which: int) -> None:
        replica = self.replica(which)
        if not replica.wire:
            replica.refuse_all()

    @rule(which=WHICH)
    def freeze_or_wake(self, which: int) -> None:
        self.replica(which).is_frozen ^= True

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0]))
    def live(self, seconds: float) -> None:
        self.fleet.live(seconds)

    @rule(shard=st.integers(0, 1))
    def lose_or_connect_shard(self, shard: int) -> None:
        if self.fleet.shards[shard].is_open:
            self.fleet.lose_shard(shard)
        else:
            self.fleet.connect_shard(shard)

    @rule(shard=st.integers(0, 1), which=WHICH)
    def move(self, shard: int, which: int) -> None:
        self.fleet.move(shard, which)

    @precondition(lambda self: self.fleet.readers)
    @rule(which=WHICH)
    def leave(self, which: int) -> None:
        self.fleet.leave(f"q{which % len(self.fleet.readers)}")

    @invariant()
    def streams_are_exact(self) -> None:
        self.fleet.check()

    def teardown(self) -> None:
        try:
            self.fleet.run_out()
            self.fleet.check()
            self.fleet.check_ended()
        finally:
            self.fleet.loop.close()


TestStreams = Streams.TestCase
TestStreams.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
