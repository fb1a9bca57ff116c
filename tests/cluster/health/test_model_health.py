"""When a model is ready, when it is to be probed, and when its work does not move."""

import pytest

from cluster.health.model_health import PROVEN_S, RETRY_S, STUCK_S, ModelHealth, Probe, Sight

IDLE = Sight(num_shards=1, num_usable=2, num_waiting=0, num_tokens=0, engine_progress=0, patience_s=0.0)


def proven(now: float = 0.0) -> ModelHealth:
    model = ModelHealth()
    assert model.look(IDLE, now)
    model.probed(Probe.PASSED, "", now)
    return model


def test_a_new_model_is_ready_once_a_probe_has_passed() -> None:
    model = ModelHealth()
    assert not model.look(IDLE._replace(num_usable=0), 0.0)
    assert model.unready == "no replica takes requests"
    assert model.look(IDLE, 0.1), "a replica is there: it is tried at once"
    assert model.unready and not model.look(IDLE, 0.2), "one probe at a time"
    model.probed(Probe.PASSED, "", 0.3)
    assert model.unready == ""


def test_a_clients_token_proves_as_well_and_spares_the_probe() -> None:
    model = proven()
    for second in range(60):
        busy = IDLE._replace(num_waiting=3, num_tokens=second)
        assert not model.look(busy, float(second)) and model.unready == ""


def test_an_idle_model_is_tried_again_now_and_then_and_stays_ready_meanwhile() -> None:
    model = proven()
    assert not model.look(IDLE, PROVEN_S - 0.1)
    assert model.look(IDLE, PROVEN_S) and model.unready == ""
    model.probed(Probe.BUSY, "", PROVEN_S + 1)
    assert model.unready == "" and not model.look(IDLE, PROVEN_S + 2)


def test_a_failed_probe_is_told_and_repeated_until_something_passes() -> None:
    model = proven()
    assert model.look(IDLE, PROVEN_S)
    model.probed(Probe.FAILED, "the engine gave it up", PROVEN_S + 1)
    assert model.unready == "the engine gave it up"
    assert model.look(IDLE, PROVEN_S + 1 + RETRY_S)
    model.probed(Probe.PASSED, "", PROVEN_S + 2 + RETRY_S)
    assert model.unready == ""


@pytest.mark.parametrize(
    ("lost", "why"),
    [
        (IDLE._replace(num_usable=0), "no replica takes requests"),
        (IDLE._replace(num_shards=0), "no router shard can be asked"),
    ],
)
def test_what_is_lost_is_missed_at_once_and_must_prove_itself_anew(lost: Sight, why: str) -> None:
    model = proven()
    model.look(lost, 1.0)
    assert model.unready == why
    assert model.look(IDLE, 2.0) and model.unready


def test_the_last_replica_may_go_while_the_probe_runs() -> None:
    model = ModelHealth()
    assert model.look(IDLE, 0.0)
    model.look(IDLE._replace(num_usable=0), 0.1)
    model.probed(Probe.PASSED, "", 0.2)
    assert model.unready == "no replica takes requests"


def test_work_that_waits_while_nothing_moves_is_stuck() -> None:
    model = proven()
    waiting = IDLE._replace(num_waiting=3)
    for tenths in range(round(10 * STUCK_S)):
        model.look(waiting, tenths / 10)
        assert not model.stuck
    model.look(waiting, STUCK_S + 0.5)
    assert model.stuck.startswith("3 requests")
    model.look(waiting._replace(engine_progress=1), STUCK_S + 0.6)
    assert not model.stuck, "a step counter has moved"


@pytest.mark.parametrize("field", ["engine_progress", "num_tokens"])
def test_whatever_moves_is_progress_and_an_idle_model_owes_none(field: str) -> None:
    model = proven()
    for second in range(100):
        model.look(IDLE._replace(num_waiting=1, **{field: second}), float(second))
        assert not model.stuck
    for second in range(100, 200):
        model.look(IDLE, float(second))
        assert not model.stuck


def test_an_honest_step_may_take_its_time() -> None:
    model = proven()
    slow = IDLE._replace(num_waiting=1, patience_s=30.0)
    model.look(slow, 0.0)
    model.look(slow, 29.0)
    assert not model.stuck
    model.look(slow, 31.0)
    assert model.stuck
