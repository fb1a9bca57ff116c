"""Charged once, for what was really used."""

from cluster.frames import Ended, Enqueue, Outcome
from cluster.router.ledger import KEPT_S, Ledger
from cluster.router.request_cost import OutputLengths, price
from cluster.router.running_shares import RunningShares
from cluster.router.waiting import Waiting


def entry(attempt: int = 0, prompt: int = 100, emitted: int = 0, expected: int = 50, left: int = 80) -> Waiting:
    asked = Enqueue("q", attempt, "m", "t", 0, 60.0, prompt + emitted, left, num_output_tokens=emitted)
    return Waiting(asked, "g", 0.0, 60.0, price(prompt + emitted, 0, expected), num_new_tokens=expected)


def ended(attempt: int, output: int, finished: bool, cached: int = 0, outcome: Outcome = Outcome.OK) -> Ended:
    return Ended("q", attempt, "m", "t", "r", outcome, output, cached, finished)


def test_the_charge_is_corrected_by_what_was_really_used() -> None:
    lengths = OutputLengths()
    ledger = Ledger(lengths, RunningShares({}))
    assert ledger.open(entry()) == price(100, 0, 50)
    settled = ledger.settle(ended(0, output=10, finished=True, cached=64))
    assert settled is not None
    assert settled[1] == price(100, 64, 10) - price(100, 0, 50)
    assert len(ledger) == 0
    assert lengths.expect("t", 0, 80) == 10


def test_attempts_are_charged_once_and_their_output_is_summed() -> None:
    ledger = Ledger(OutputLengths(), RunningShares({}))
    assert ledger.open(entry()) == price(100, 0, 50)
    assert ledger.settle(ended(0, output=7, finished=False, cached=32, outcome=Outcome.FAILED)) is None
    assert ledger.num_lost_tokens == 100 - 32 + 7
    assert ledger.open(entry(attempt=1, emitted=7, left=73)) == 0
    settled = ledger.settle(ended(1, output=13, finished=True))
    assert settled is not None
    assert settled[1] == price(100, 32, 20) - price(100, 0, 50)


def test_what_other_shards_have_done_is_not_charged_here() -> None:
    ledger = Ledger(OutputLengths(), RunningShares({}))
    assert ledger.open(entry(attempt=1, emitted=30, expected=20, left=50)) == price(0, 0, 20)
    settled = ledger.settle(ended(1, output=25, finished=True, cached=100))
    assert settled is not None
    assert settled[1] == price(0, 0, 25) - price(0, 0, 20)


def test_a_request_that_did_not_run_gives_its_charge_back_once() -> None:
    ledger = Ledger(OutputLengths(), RunningShares({}))
    ledger.open(entry())
    charge = ledger.cancel("q")
    assert charge is not None and charge.cost == price(100, 0, 50)
    assert ledger.cancel("q") is None and ledger.settle(ended(0, 5, True)) is None


def test_a_request_that_has_emitted_is_not_given_back() -> None:
    ledger = Ledger(OutputLengths(), RunningShares({}))
    ledger.open(entry())
    ledger.settle(ended(0, output=7, finished=False))
    assert ledger.cancel("q") is None


def test_charges_without_an_end_are_forgotten() -> None:
    ledger = Ledger(OutputLengths(), RunningShares({}))
    ledger.open(entry())
    ledger.expire(60.0 + KEPT_S - 1)
    assert len(ledger) == 1
    ledger.expire(60.0 + KEPT_S)
    assert len(ledger) == 0
    ledger.check_invariants()


def test_lengths_are_learned_by_tenant_and_never_over_what_is_allowed() -> None:
    lengths = OutputLengths()
    assert lengths.expect("a", 0, 100) == 100 and lengths.expect("a", 0, 10_000) == 256
    for _ in range(20):
        lengths.note(1024)
    assert lengths.ratio == 0.25
    for _ in range(20):
        lengths.learn("a", 10, 100)
        lengths.learn("b", 90, 100)
    assert lengths.expect("a", 0, 100) == 10
    assert lengths.expect("b", 0, 40) == 40
    assert 10 < lengths.expect("new", 0, 100) < 90
    assert lengths.expect("b", 60, 100) == 30
    assert lengths.expect("a", 60, 100) == 2  # longer than usual already: a quarter of the usual still to come
    assert 0.4 < lengths.ratio < 0.6
