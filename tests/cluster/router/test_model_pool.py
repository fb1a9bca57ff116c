"""The decision by hand: reservations, restrictions, refusals, moves, and what ends of attempts change."""

from typing import Any

from cluster.config import RouterConfig, TenantConfig
from cluster.frames import (
    Announce,
    Condemn,
    Drain,
    Ended,
    Enqueue,
    Grant,
    Leave,
    Move,
    Outcome,
    Refuse,
    Report,
    Spare,
    Withdraw,
)
from cluster.router.model_pool import MAX_MOVES
from cluster.router.router import Outbox, Router
from cluster.router.waiting import AVOID_S
from cluster.routing.policy import policy_of
from tests.cluster.router_world import add_replica, load, replica_info, router


def ask(
    name: str, tokens: int = 4, max_tokens: int = 2, tenant: str = "t", timeout_s: float = 60.0, **more: Any
) -> Enqueue:
    attempt = more.pop("attempt", 0)
    return Enqueue(name, attempt, "m", tenant, more.pop("priority", 0), timeout_s, tokens, max_tokens, **more)


def granted(outbox: Outbox) -> list[str]:
    return [f"{m.request_id}@{m.replica_id}" for _, m in outbox if isinstance(m, Grant)]


def refused(outbox: Outbox) -> list[tuple[str, str]]:
    return [(m.request_id, m.code) for _, m in outbox if isinstance(m, Refuse)]


def put(shard: Router, *asked: Enqueue, now: float = 0.0) -> list[str]:
    return [text for one in asked for text in granted(shard.on_enqueue("g", one, now))]


def ended(name: str, output: int = 1, outcome: Outcome = Outcome.OK, replica: str = "r1", **more: Any) -> Ended:
    fields = {"tenant": "t", "finished": True, "attempt": 0} | more
    return Ended(name, fields["attempt"], "m", fields["tenant"], replica, outcome, output, finished=fields["finished"])


# Credit


def test_a_large_request_gets_a_replica_reserved_and_small_ones_go_elsewhere() -> None:
    shard = router()
    one = add_replica(shard, "r1", free_slots=3, free_blocks=10)
    add_replica(shard, "r2", free_slots=3, free_blocks=5)
    assert put(shard, ask("large", tokens=60)) == []  # 16 blocks of 4; "r1" is the roomiest
    assert put(shard, ask("a"), ask("b")) == ["a@r2", "b@r2"]
    assert granted(shard.on_report(one, Report(load(free_slots=3, free_blocks=12), []), 0.1)) == []
    assert granted(shard.on_report(one, Report(load(free_slots=3, free_blocks=16), []), 0.2)) == ["large@r1"]
    shard.check_invariants()


def test_a_large_request_on_the_only_replica_waits_for_it_to_be_empty_and_nobody_overtakes() -> None:
    shard = router()
    one = add_replica(shard, "r1", free_slots=3, free_blocks=10)
    assert put(shard, ask("large", tokens=400), ask("small")) == []
    assert granted(shard.on_report(one, Report(load(free_slots=3, free_blocks=60), []), 0.1)) == []
    assert granted(shard.on_report(one, Report(load(free_slots=4), []), 0.2)) == ["large@r1"]
    assert granted(shard.on_report(one, Report(load(free_slots=3, free_blocks=60), [("large", 0)]), 0.3)) == [
        "small@r1"
    ]


def test_a_reservation_is_thought_over_at_each_tick_and_ends_with_its_replica() -> None:
    shard = router(report_timeout_s=100.0)
    one = add_replica(shard, "r1", free_slots=3, free_blocks=10)
    add_replica(shard, "r2", free_slots=0, free_blocks=50)
    put(shard, ask("large", tokens=60))
    shard.on_report(replica_info("r2"), Report(load(free_slots=1, free_blocks=50), []), 0.1)
    assert granted(shard.on_tick(0.2)) == ["large@r2"]
    put(shard, ask("other", tokens=60))
    shard.on_replica_lost(one)
    shard.check_invariants()
    shard.on_report(replica_info("r2"), Report(load(free_slots=2, free_blocks=50), [("large", 0)]), 0.3)
    assert len(shard.queues()["m"]) == 0


def test_expected_growth_of_what_runs_is_not_credit() -> None:
    shard = router()
    one = replica_info("r1")
    shard.on_announce(Announce(one), 0.0)
    running = load(free_slots=3, free_blocks=10)
    grows = type(running)(1, 1, 0, 3, 10, 0, remaining_tokens=32)  # all of it may come: 8 blocks of 4
    shard.on_report(one, Report(grows, []), 0.0)
    assert put(shard, ask("a", tokens=8, max_tokens=2)) == []  # 9 tokens: 3 blocks
    assert granted(shard.on_report(one, Report(running, []), 0.1)) == ["a@r1"]


def test_a_request_that_is_asked_again_holds_one_grant() -> None:
    shard = router()
    add_replica(shard, "r1")
    add_replica(shard, "r2")
    assert len(put(shard, ask("a"), ask("a"), ask("a"))) == 3
    assert sum(len(replica.granted) for replica in shard.replicas()) == 1
    shard.check_invariants()


# Who may go where


def test_a_request_keeps_away_from_who_failed_it_for_a_while() -> None:
    shard = router(report_timeout_s=100.0)
    add_replica(shard, "r1")
    assert put(shard, ask("a", attempt=1, avoid=["r1"]), ask("b")) == ["b@r1"]
    assert granted(shard.on_tick(AVOID_S / 2)) == []
    assert granted(shard.on_tick(AVOID_S)) == ["a@r1"]


def test_weights_are_a_hard_condition_and_hold_nobody_up() -> None:
    shard = router(report_timeout_s=100.0)
    add_replica(shard, "r1")
    assert put(shard, ask("old", attempt=1, weights_revision="r9"), ask("b")) == ["b@r1"]
    assert granted(shard.on_tick(30.0)) == []
    assert refused(shard.on_tick(60.0)) == [("old", "deadline_exceeded")]
    assert put(shard, ask("same", attempt=1, weights_revision="r0"), now=60.0) == ["same@r1"]


def test_who_leaves_or_drains_gets_nothing_more() -> None:
    shard = router()
    one, _ = add_replica(shard, "r1"), add_replica(shard, "r2")
    assert shard.on_leave(one, Leave(), 0.0) == []
    assert put(shard, ask("a"), ask("b")) == ["a@r2", "b@r2"]
    assert shard.drain("r2") == Drain() and shard.drain("nobody") is None
    assert put(shard, ask("c")) == []
    assert [replica["is_draining"] for replica in shard.status(0.0)["replicas"]] == [True, True]


def test_a_replica_that_fails_requests_is_left_out_and_tried_again_with_one() -> None:
    shard = router(report_timeout_s=100.0)
    add_replica(shard, "r1")
    add_replica(shard, "r2")
    for number in range(3):
        shard.on_ended(ended(f"q{number}", outcome=Outcome.FAILED, finished=False), 0.0)
    assert [replica["breaker"] for replica in shard.status(0.0)["replicas"]] == ["open", "closed"]
    assert put(shard, *[ask(name) for name in "abcd"]) == ["a@r2", "b@r2", "c@r2", "d@r2"]
    assert put(shard, ask("e"), ask("f")) == []
    assert granted(shard.on_tick(1.0)) == ["e@r1"]  # the one probe
    assert granted(shard.on_ended(ended("e"), 1.1)) == ["f@r1"]
    shard.check_invariants()


# Refusals


def test_a_flooding_tenant_is_refused_for_its_share_and_the_others_still_come_in() -> None:
    shard = router(max_queued_requests=100)
    answers = [refused(shard.on_enqueue("g", ask(f"a{n}", tenant="a"), 0.0)) for n in range(120)]
    assert {code for answer in answers for _, code in answer} == {"server_is_overloaded"}
    assert len(shard.queues()["m"]) == 80  # alone, it may hold four times what is free
    assert [refused(shard.on_enqueue("g", ask(f"b{n}", tenant="b"), 0.0)) for n in range(10)] == [[]] * 10
    [(_, refusal)] = shard.on_enqueue("g", ask("more", tenant="a"), 0.0)
    assert isinstance(refusal, Refuse) and refusal.code == "rate_limit_exceeded"
    assert refusal.retry_after_s is not None and 4.0 <= refusal.retry_after_s <= 6.0


def test_weight_is_a_larger_share_too() -> None:
    config = RouterConfig(max_queued_requests=100, tenants={"big": TenantConfig(weight=4.0)})
    shard = Router(config, policy_of(config))
    for number in range(100):
        shard.on_enqueue("g", ask(f"q{number}", tenant="big"), 0.0)
    assert len(shard.queues()["m"]) == 95


def test_migrations_and_moved_requests_are_never_refused_for_fullness() -> None:
    shard = router(max_queued_requests=2)
    for number in range(5):
        shard.on_enqueue("g", ask(f"q{number}"), 0.0)
    full = len(shard.queues()["m"])
    assert refused(shard.on_enqueue("g", ask("migrates", attempt=1, num_output_tokens=3), 0.0)) == []
    assert refused(shard.on_enqueue("g", ask("moves", num_moves=1, waited_s=2.0), 0.0)) == []
    assert len(shard.queues()["m"]) == full + 2


def test_who_would_wait_longer_than_its_time_is_refused_at_once() -> None:
    shard = router()
    one = add_replica(shard, "r1", free_slots=0)
    for number in range(40):
        shard.on_enqueue("g", ask(f"q{number}", tokens=98, max_tokens=2), 0.0)  # costs 100 each
    for step in range(1, 21):  # one goes every 0.1 s: 1,000 a second, 2,000 are left
        shard.on_report(one, Report(load(free_slots=1), []), 0.1 * step)
        shard.on_report(one, Report(load(free_slots=0), [(f"q{step - 1}", 0)]), 0.1 * step)
    [(_, refusal)] = shard.on_enqueue("g", ask("hasty", timeout_s=1.0), 2.0)
    assert isinstance(refusal, Refuse) and refusal.code == "server_is_overloaded"
    assert refusal.retry_after_s is not None and 1.5 < refusal.retry_after_s < 2.6
    assert refused(shard.on_enqueue("g", ask("patient", timeout_s=10.0), 2.0)) == []
    assert refused(shard.on_enqueue("g", ask("light", tenant="other", timeout_s=1.0), 2.0)) == []  # its turn comes soon


def test_a_condemned_request_is_refused_at_the_door_and_at_its_turn_for_ten_minutes() -> None:
    shard = router(report_timeout_s=1e6)
    put(shard, ask("waits", digest=b"evil"))
    assert shard.on_condemn(Condemn(b"evil"), 0.0) == []
    assert refused(shard.on_enqueue("g", ask("again", digest=b"evil"), 1.0)) == [("again", "poison_request")]
    shard.on_announce(Announce(replica_info("r1")), 1.0)
    outbox = shard.on_report(replica_info("r1"), Report(load(), []), 1.0)
    assert (refused(outbox), granted(outbox)) == ([("waits", "poison_request")], [])
    shard.on_tick(600.0)
    assert put(shard, ask("later", digest=b"evil"), now=600.0) == ["later@r1"]


def test_an_expired_request_is_never_granted() -> None:
    shard = router()
    put(shard, ask("a", timeout_s=1.0))
    shard.on_announce(Announce(replica_info("r1")), 2.0)
    outbox = shard.on_report(replica_info("r1"), Report(load(), []), 2.0)
    assert (refused(outbox), granted(outbox)) == ([("a", "deadline_exceeded")], [])


# What ends teach


def test_a_tenant_that_used_less_than_charged_gets_its_turns_back() -> None:
    shard = router(report_timeout_s=100.0)
    one = add_replica(shard, "r1", free_slots=1)
    put(shard, ask("a1", max_tokens=100, tenant="a"))  # charged 4 + 2 * 100
    shard.on_report(one, Report(load(free_slots=0), [("a1", 0)]), 0.1)
    put(
        shard,
        *[ask(f"{tenant}{n}", tokens=10, max_tokens=1, tenant=tenant) for n in (2, 3) for tenant in "ab"],
        now=0.1,
    )
    shard.on_ended(ended("a1", output=1, tenant="a"), 0.2)  # it took 4 + 2
    turns = []
    for step in range(4):
        turns += granted(shard.on_report(one, Report(load(free_slots=1), []), 0.3 + step))
        for key in list(shard.replicas()[0].granted):
            shard.on_report(one, Report(load(free_slots=0), [key]), 0.4 + step)
    assert turns == ["b2@r1", "a2@r1", "b3@r1", "a3@r1"]


def test_wasted_tokens_are_counted() -> None:
    shard = router()
    one = add_replica(shard, "r1")
    put(shard, ask("a", tokens=20))
    shard.on_ended(ended("a", output=5, outcome=Outcome.FAILED, finished=False), 0.1)
    for again in (7, 9):
        running = load()
        shard.on_report(one, Report(type(running)(1, 0, 0, 4, 64, 0, num_recomputed_tokens=again), []), 0.1)
    queue = shard.status(0.2)["queues"]["m"]
    assert (queue["lost_tokens"], queue["recomputed_tokens"]) == (25, 9)


# Other shards


def test_an_idle_shard_tells_its_room_and_a_busy_one_none() -> None:
    shard = router(shards=3)
    assert shard.spare() == []
    one = add_replica(shard, "r1", free_slots=3, free_blocks=20)
    assert shard.spare() == [Spare(0, "m", 2, 40)]  # for each of two others
    put(shard, ask("a"), ask("b"), ask("c"))
    assert shard.spare() == []
    shard.on_report(one, Report(load(free_slots=0), [(name, 0) for name in "abc"]), 0.1)
    put(shard, ask("d"))
    assert shard.spare() == []


def test_a_loaded_shard_moves_those_whose_turn_it_is() -> None:
    shard = router(shards=2)
    add_replica(shard, "r1", free_slots=0)
    put(shard, *[ask(f"a{n}", tenant="a") for n in range(4)], *[ask(f"b{n}", tenant="b") for n in range(4)])
    outbox = shard.on_spare(Spare(1, "m", 4, 1000), 0.1)
    assert [m.request_id for _, m in outbox if isinstance(m, Move)] == ["a0", "b0", "a1", "b1"]
    assert all(gateway == "g" and isinstance(m, Move) and m.shard == 1 for gateway, m in outbox)
    assert len(shard.queues()["m"]) == 4
    assert len(shard.on_spare(Spare(1, "m", 4, 12), 0.1)) == 2  # 4 tokens and 2 to come, each
    assert shard.on_spare(Spare(1, "other", 4, 10), 0.1) == []


def test_nothing_moves_while_there_is_room_here_nor_more_than_a_few_times() -> None:
    shard = router(shards=2)
    one = add_replica(shard, "r1", free_slots=0)
    put(shard, ask("often", num_moves=MAX_MOVES, waited_s=9.0), ask("other"))
    assert shard.on_spare(Spare(1, "m", 4, 1000), 0.1) == []  # its turn comes first, and here
    assert granted(shard.on_report(one, Report(load(free_slots=1), []), 0.2)) == ["often@r1"]


def test_the_wait_in_other_shards_counts() -> None:
    shard = router()
    one = add_replica(shard, "r1", free_slots=0)
    put(shard, ask("here"), now=5.0)
    put(shard, ask("moved", num_moves=1, waited_s=8.0), now=6.0)
    assert granted(shard.on_report(one, Report(load(free_slots=1), []), 6.0)) == ["moved@r1"]


def test_a_pinned_stream_leaves_a_shard_where_nobody_with_its_weights_admits() -> None:
    shard = router(shards=2)
    one = add_replica(shard, "r1", free_slots=0)
    put(shard, ask("pinned", attempt=1, weights_revision="r0"))
    assert shard.on_spare(Spare(1, "m", 4, 1000), 0.1) == [], "r1 will have room"
    shard.on_leave(one, Leave(), 0.2)
    assert [type(m) for _, m in shard.on_spare(Spare(1, "m", 4, 1000), 0.3)] == [Move]


def test_what_no_replica_here_may_take_moves_though_there_is_room() -> None:
    shard = router(shards=2)
    add_replica(shard, "r1")
    assert granted(put(shard, ask("kept", attempt=1, weights_revision="r0", avoid=["r1"]))) == []
    [(_, move)] = shard.on_spare(Spare(1, "m", 4, 1000), 0.1)
    assert isinstance(move, Move) and move.request_id == "kept"
    shard.check_invariants()


def test_who_must_stay_takes_no_room_from_those_that_may_move() -> None:
    shard = router(shards=2)
    add_replica(shard, "r1", free_slots=1)
    put(shard, ask("stays", attempt=1, weights_revision="gone", num_moves=MAX_MOVES, tokens=60))
    put(shard, ask("runs"), ask("waits"))
    assert [m.request_id for _, m in shard.on_spare(Spare(1, "m", 1, 20), 0.1) if isinstance(m, Move)] == ["waits"]


def test_who_waited_for_a_first_replica_is_not_the_measure_of_its_speed() -> None:
    shard = router()
    one = add_replica(shard, "r1", free_slots=0)
    put(shard, *[ask(f"q{n}") for n in range(50)])
    for tick in range(40):
        shard.on_report(one, Report(load(free_slots=0), []), 0.1 * tick)
    assert [type(m) for _, m in shard.on_enqueue("g", ask("slow", timeout_s=5.0), 4.0)] == [Refuse]
    shard.on_replica_lost(one)
    add_replica(shard, "r2", now=5.0, free_slots=0)
    assert shard.on_enqueue("g", ask("new", timeout_s=5.0), 5.1) == []


def test_a_replica_whose_breaker_opens_loses_its_reservation() -> None:
    shard = router()
    one = add_replica(shard, "r1", free_slots=3, free_blocks=10)
    add_replica(shard, "r2", free_slots=0)
    assert put(shard, ask("large", tokens=60)) == []  # reserved: "r1"
    for number in range(3):
        shard.on_ended(ended(f"e{number}", outcome=Outcome.FAILED), 0.1)
    assert granted(shard.on_report(one, Report(load(), []), 0.2)) == []
    shard.check_invariants()
    assert granted(shard.on_report(replica_info("r2"), Report(load(), []), 0.3)) == ["large@r2"]
    shard.check_invariants()


def test_a_request_that_was_asked_for_again_while_its_grant_was_used_costs_nobody_credit() -> None:
    shard = router()
    one = add_replica(shard, "r1", free_slots=1)
    assert put(shard, ask("q")) == ["q@r1"]
    shard.on_withdraw(Withdraw("q", 0), 0.1)  # on its way while the gateway submits to "r1" what it was granted
    shard.on_report(one, Report(load(free_slots=0), []), 0.1)
    add_replica(shard, "r2", free_slots=1)
    assert put(shard, ask("q")) == ["q@r2"]
    shard.on_report(one, Report(load(free_slots=0), [("q", 0)]), 0.2)
    shard.check_invariants()
    shard.on_withdraw(Withdraw("q", 0), 0.3)
    assert put(shard, ask("next")) == ["next@r2"]


def test_what_was_let_in_before_is_not_turned_away_when_it_is_asked_for_again() -> None:
    shard = router(max_queued_requests=1)
    put(shard, ask("waits"))
    assert refused(shard.on_enqueue("g", ask("new"), 0.0)) == [("new", "server_is_overloaded")]
    assert refused(shard.on_enqueue("g", ask("again", waited_s=3.0, is_known=True), 0.0)) == []


def test_a_gateway_that_uses_no_grant_and_says_nothing_is_named_once() -> None:
    shard = router(lease_s=1.0)
    for name in ("frozen", "slow", "new"):
        shard.on_gateway(name)
    shard.heard("frozen", 0.0)
    shard.heard("slow", 0.5)
    add_replica(shard, "r1")
    for name in ("frozen", "slow", "new"):
        assert granted(shard.on_enqueue(name, ask(f"of {name}"), 0.0))
    shard.on_tick(0.9)
    assert shard.silent_gateways() == []
    shard.on_tick(1.0)
    assert shard.silent_gateways() == ["frozen"]
    assert shard.silent_gateways() == []


def test_a_stream_that_waits_for_other_weights_is_no_backlog() -> None:
    shard = router(report_timeout_s=1000.0)
    add_replica(shard, "r1")
    put(shard, ask("old", attempt=1, weights_revision="gone", timeout_s=900.0))
    for second in range(100):
        shard.on_tick(float(second))
    assert shard.status(100.0)["queues"]["m"]["drain_cost_per_s"] is None
