"""A replica takes its leave: short streams end, long ones move, and nothing is cut off for want of another replica."""

from cluster.replica.replica_drain import FLUSH_S, LINGER_S, DrainStep, ReplicaDrain


def drain(drain_s: float = 5.0, grace_s: float = 60.0) -> ReplicaDrain:
    return ReplicaDrain(100.0, drain_s, grace_s)


def test_an_idle_replica_lingers_for_requests_on_their_way() -> None:
    leave = drain()
    assert leave.next(100.0, 0, True) is DrainStep.WAIT
    assert leave.next(100.0 + LINGER_S, 0, True) is DrainStep.END


def test_short_streams_end_long_ones_are_handed_back_once() -> None:
    leave = drain()
    assert leave.next(104.9, 2, True) is DrainStep.WAIT
    assert leave.next(105.0, 1, True) is DrainStep.HAND_BACK
    assert leave.next(105.1, 1, True) is DrainStep.WAIT
    assert leave.next(105.2, 0, True) is DrainStep.END


def test_streams_run_on_while_no_other_replica_has_their_weights() -> None:
    leave = drain()
    assert not leave.asks_for_others(104.9)
    assert leave.asks_for_others(105.0)
    assert leave.next(105.0, 1, False) is DrainStep.WAIT
    assert leave.next(140.0, 1, True) is DrainStep.HAND_BACK
    assert not leave.asks_for_others(141.0)


def test_grace_has_an_end() -> None:
    leave = drain()
    assert leave.next(159.9, 1, False) is DrainStep.WAIT
    assert leave.next(160.0, 1, False) is DrainStep.HAND_BACK
    assert leave.next(160.0 + FLUSH_S, 1, False) is DrainStep.END


def test_grace_is_never_shorter_than_the_drain() -> None:
    leave = drain(drain_s=10.0, grace_s=0.0)
    assert leave.next(109.0, 1, False) is DrainStep.WAIT
    assert leave.next(110.0, 1, False) is DrainStep.HAND_BACK
