"""How much may be tried again."""

from cluster.streams.retry_budget import PER_SECOND, RetryBudget


def spend_all(budget: RetryBudget, now: float) -> int:
    count = 0
    while budget.spend(now):
        count += 1
        assert count < 10_000
    return count


def test_some_retries_a_second_whatever_the_load() -> None:
    budget = RetryBudget(0.0)
    spend_all(budget, 0.0)
    assert not budget.spend(0.05)
    assert spend_all(budget, 1.1) == PER_SECOND + 1


def test_a_fifth_of_the_requests_beyond_that() -> None:
    budget = RetryBudget(0.0)
    spend_all(budget, 0.0)
    for _ in range(500):
        budget.on_request()
    assert spend_all(budget, 0.0) == 100


def test_what_is_not_used_does_not_pile_up() -> None:
    budget = RetryBudget(0.0)
    for _ in range(100_000):
        budget.on_request()
    assert spend_all(budget, 3600.0) == 10 * PER_SECOND
    assert spend_all(budget, 3600.0) == 0
    assert spend_all(budget, 3500.0) == 0, "a clock that goes back gives nothing"
