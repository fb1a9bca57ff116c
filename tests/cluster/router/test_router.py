"""Late binding by credit: who is granted what, when."""

from cluster.frames import Announce, Grant, Leave, Refuse, ReplicaDown, ReplicaUp, Report, Withdraw
from cluster.router.router import Outbox
from tests.cluster.router_world import add_replica, descriptor, load, replica_info, router


def grants(outbox: Outbox) -> list[tuple[str, str]]:
    return [(m.request_id, m.replica_id) for _, m in outbox if isinstance(m, Grant)]


def refusals(outbox: Outbox) -> list[tuple[str, str]]:
    return [(m.request_id, m.code) for _, m in outbox if isinstance(m, Refuse)]


def test_a_request_is_granted_at_once_where_there_is_credit() -> None:
    shard = router()
    add_replica(shard, "r1")
    outbox = shard.on_enqueue("g", descriptor("a"), 0.0)
    assert outbox == [("g", Grant("a", 0, "r1", 2.0))]


def test_without_credit_it_waits_and_is_bound_at_the_report_that_frees_some() -> None:
    shard = router()
    info = add_replica(shard, "r1", free_slots=1)
    assert grants(shard.on_enqueue("g", descriptor("a"), 0.0)) == [("a", "r1")]
    assert shard.on_enqueue("g", descriptor("b"), 0.0) == []
    # "a" has arrived and taken the slot: nothing is free, although the grant is no longer outstanding
    assert shard.on_report(info, Report(load(free_slots=0), [("a", 0)]), 0.1) == []
    assert grants(shard.on_report(info, Report(load(free_slots=1), []), 0.2)) == [("b", "r1")]


def test_a_report_made_before_a_grant_arrives_does_not_free_its_credit() -> None:
    shard = router()
    info = add_replica(shard, "r1", free_slots=1)
    shard.on_enqueue("g", descriptor("a"), 0.0)
    shard.on_enqueue("g", descriptor("b"), 0.0)
    assert shard.on_report(info, Report(load(free_slots=1), []), 0.1) == []


def test_who_leaves_to_be_rebuilt_gets_nothing_until_it_announces_itself_again() -> None:
    shard = router()
    info = add_replica(shard, "r1")
    shard.on_leave(info, Leave(comes_back=True), 0.0)
    assert shard.on_enqueue("g", descriptor("a"), 0.0) == []
    assert shard.on_report(info, Report(load(), []), 0.1) == []
    replica = shard.status(0.1)["replicas"][0]
    assert (replica["is_draining"], replica["comes_back"]) == (True, True)
    shard.on_announce(Announce(info), 1.0)
    assert grants(shard.on_report(info, Report(load(), []), 1.0)) == [("a", "r1")]
    replica = shard.status(1.0)["replicas"][0]
    assert (replica["is_draining"], replica["comes_back"]) == (False, False)


def test_blocks_are_credit_too() -> None:
    shard = router()
    info = add_replica(shard, "r1", free_slots=3, free_blocks=6)
    # 12 tokens and, while nothing is known of the tenant, all of the 16 that may come: 7 blocks of 4
    assert shard.on_enqueue("g", descriptor("big", tokens=12), 0.0) == []
    assert grants(shard.on_report(info, Report(load(free_slots=3, free_blocks=7), []), 0.1)) == [("big", "r1")]


def test_the_least_loaded_replica_is_chosen_and_dispatch_counts_at_once() -> None:
    shard = router()
    add_replica(shard, "r1", queued_tokens=200)
    add_replica(shard, "r2", queued_tokens=0)  # each grant of 8 tokens adds 8 + 128
    chosen = [grants(shard.on_enqueue("g", descriptor(name, tokens=8), 0.0)) for name in ("a", "b", "c")]
    assert chosen == [[("a", "r2")], [("b", "r2")], [("c", "r1")]]


def test_priority_first_then_first_come() -> None:
    shard = router()
    info = replica_info("r1")
    for name, priority in (("late", 1), ("a", 0), ("b", 0), ("urgent", -1)):
        shard.on_enqueue("g", descriptor(name, priority=priority), 0.0)
    shard.on_announce(Announce(info), 0.0)
    outbox = shard.on_report(info, Report(load(free_slots=4), []), 0.0)
    assert [name for name, _ in grants(outbox)] == ["urgent", "a", "b", "late"]


def test_a_full_queue_refuses_at_once_with_the_time_to_come_back() -> None:
    shard = router(max_queued_requests=2)
    for name in ("a", "b"):
        assert shard.on_enqueue("g", descriptor(name), 0.0) == []
    [(gateway, refusal)] = shard.on_enqueue("g", descriptor("c"), 0.0)
    assert gateway == "g" and isinstance(refusal, Refuse)
    assert refusal.code == "server_is_overloaded" and (refusal.retry_after_s or 0) >= 1


def test_tokens_bound_the_queue_but_one_request_always_fits() -> None:
    shard = router(max_queued_tokens=10)
    assert shard.on_enqueue("g", descriptor("huge", tokens=100), 0.0) == []
    assert refusals(shard.on_enqueue("g", descriptor("more", tokens=1), 0.0)) == [("more", "server_is_overloaded")]


def test_a_deadline_passes_in_the_queue() -> None:
    shard = router()
    add_replica(shard, "r1", free_slots=0)
    shard.on_enqueue("g", descriptor("a", timeout_s=1.0), 0.0)
    assert shard.on_tick(0.9) == []
    assert refusals(shard.on_tick(1.0)) == [("a", "deadline_exceeded")]


def test_no_replica_until_the_deadline_is_said_so() -> None:
    shard = router()
    shard.on_enqueue("g", descriptor("a", timeout_s=1.0), 0.0)
    assert refusals(shard.on_tick(1.0)) == [("a", "no_ready_replica")]


def test_an_unused_grant_returns_after_its_lease() -> None:
    shard = router(lease_s=1.0, report_timeout_s=100.0)
    add_replica(shard, "r1", free_slots=1)
    shard.on_enqueue("g", descriptor("a"), 0.0)
    shard.on_enqueue("g", descriptor("b"), 0.0)
    assert grants(shard.on_tick(0.9)) == []
    assert grants(shard.on_tick(1.0)) == [("b", "r1")]


def test_withdrawing_leaves_the_queue_or_gives_the_grant_back() -> None:
    shard = router()
    add_replica(shard, "r1", free_slots=1)
    for name in ("a", "b", "c"):
        shard.on_enqueue("g", descriptor(name), 0.0)
    assert shard.on_withdraw(Withdraw("b", 0), 0.1) == []
    assert grants(shard.on_withdraw(Withdraw("a", 0), 0.1)) == [("c", "r1")]


def test_a_silent_replica_gets_nothing_new() -> None:
    shard = router(report_timeout_s=2.0)
    add_replica(shard, "r1")
    assert grants(shard.on_enqueue("g", descriptor("a"), 1.9)) == [("a", "r1")]
    assert grants(shard.on_enqueue("g", descriptor("b"), 2.1)) == []


def test_gateways_hear_of_replicas_and_a_repeated_request_is_queued_once() -> None:
    shard = router()
    info = replica_info("r1")
    shard.on_gateway("g")
    assert shard.on_announce(Announce(info), 0.0) == [("g", ReplicaUp(info))]
    assert shard.on_gateway("h") == [("h", ReplicaUp(info))]
    shard.on_enqueue("g", descriptor("a"), 0.0)
    shard.on_enqueue("g", descriptor("a"), 0.0)
    assert len(shard.queues()["m"]) == 1
    assert sorted(shard.on_replica_lost(info)) == [("g", ReplicaDown("r1")), ("h", ReplicaDown("r1"))]


def test_a_lost_gateway_leaves_nothing_in_the_queue() -> None:
    shard = router()
    shard.on_gateway("g")
    shard.on_gateway("h")
    shard.on_enqueue("g", descriptor("a"), 0.0)
    shard.on_enqueue("h", descriptor("b"), 0.0)
    shard.on_gateway_lost("g")
    assert shard.queues()["m"].of_gateway("h") == [("b", 0)] and len(shard.queues()["m"]) == 1
