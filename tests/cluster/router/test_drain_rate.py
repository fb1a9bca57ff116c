"""The measured rate and the waits it predicts."""

from cluster.router.drain_rate import JITTER, LONGEST_S, DrainRate, retry_after_s


def test_the_rate_is_that_of_backlogged_time() -> None:
    rate = DrainRate()
    rate.pass_time(False, 0.0)
    rate.note(1_000_000)  # no backlog: says nothing
    rate.pass_time(False, 100.0)
    assert rate.per_s is None
    for step in range(1, 200):
        rate.pass_time(True, 100.0 + 0.1 * step)
        rate.note(50)
    assert rate.per_s is not None
    assert 480 < rate.per_s < 520
    rate.pass_time(False, 1000.0)
    assert 480 < rate.per_s < 520
    assert 1.9 < (rate.wait_s(1000) or 0) < 2.1


def test_an_unknown_rate_predicts_nothing_and_an_empty_queue_no_wait() -> None:
    rate = DrainRate()
    assert rate.wait_s(100) is None and rate.wait_s(0) == 0.0


def test_the_rate_follows_a_change() -> None:
    rate = DrainRate()
    for step in range(1000):
        rate.pass_time(True, 0.1 * step)
        rate.note(100 if step < 500 else 10)
    assert rate.per_s is not None and 90 < rate.per_s < 160


def test_retry_after_is_spread_by_the_request_and_the_same_for_the_same() -> None:
    times = [retry_after_s(20.0, f"q{number}") for number in range(200)]
    assert times == [retry_after_s(20.0, f"q{number}") for number in range(200)]
    assert 20 * (1 - JITTER) <= min(times) < 17 and 23 < max(times) <= 20 * (1 + JITTER)
    assert retry_after_s(1e9, "q") <= LONGEST_S * (1 + JITTER)
    assert retry_after_s(0.0, "q") >= 1 - JITTER


def test_a_first_backlog_that_a_dead_replica_made_predicts_nothing() -> None:
    rate = DrainRate()
    rate.pass_time(False, 0.0)
    rate.pass_time(True, 0.2)
    rate.note(100)
    rate.pass_time(True, 1.4)
    assert rate.wait_s(100_000) is None
    rate.pass_time(True, 3.0)
    assert (rate.wait_s(100_000) or 0) > 60
    rate.forget()
    assert rate.wait_s(100_000) is None
