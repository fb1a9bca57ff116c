"""When a replica is held to be frozen or stuck."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from cluster.frames import Beat
from cluster.streams.watchdog import SILENCE_S, TICK_S, LivedTime, ReplicaWatch


class Gateway:
    """Ticks on time unless told otherwise."""

    def __init__(self) -> None:
        self.at = 0.0
        self.time = LivedTime()
        self.time.tick(0.0)
        self.watch = ReplicaWatch(self.time)

    def live(self, seconds: float, each_tick: Callable[[], object] = lambda: None) -> float | None:
        """How long it took until there was an accusation, if there was one."""
        start = self.at
        while self.at - start < seconds:
            self.at += TICK_S
            each_tick()
            self.time.tick(self.at)
            if self.watch.accusation():
                return self.at - start
        return None


def test_silence_is_noticed_in_time() -> None:
    gateway = Gateway()
    accused_after = gateway.live(5.0)
    assert accused_after is not None and SILENCE_S < accused_after <= SILENCE_S + 2 * TICK_S
    assert "said nothing" in gateway.watch.accusation()


def test_any_frame_is_a_sign_of_life() -> None:
    gateway = Gateway()
    assert gateway.live(5.0, gateway.watch.heard) is None


def beating(gateway: Gateway, step: int, is_busy: bool, patience_s: float) -> Callable[[], None]:
    progress = iter(range(0, 10**9, step)) if step else None

    def beat() -> None:
        gateway.watch.heard()
        gateway.watch.on_beat(Beat(next(progress) if progress else 7, is_busy, patience_s))

    return beat


def test_an_engine_that_stands_still_in_a_step_is_stuck() -> None:
    gateway = Gateway()
    accused_after = gateway.live(5.0, beating(gateway, 0, True, 0.5))
    assert accused_after is not None and SILENCE_S < accused_after <= SILENCE_S + 3 * TICK_S
    assert "has not moved" in gateway.watch.accusation()


def test_a_long_part_of_a_step_is_waited_for() -> None:
    gateway = Gateway()
    accused_after = gateway.live(9.0, beating(gateway, 0, True, 4.0))
    assert accused_after is not None and 4.0 < accused_after < 4.0 + 3 * TICK_S


def test_neither_progress_nor_rest_is_suspicious() -> None:
    gateway = Gateway()
    assert gateway.live(5.0, beating(gateway, 1, True, 0.0)) is None
    assert gateway.live(5.0, beating(gateway, 0, False, 0.0)) is None


def test_what_was_before_the_first_request_does_not_count() -> None:
    gateway = Gateway()
    gateway.live(1.0)
    gateway.watch.begin()
    assert gateway.live(1.0) is None


@given(st.lists(st.floats(0.0, 60.0), min_size=1, max_size=7))
def test_a_starved_gateway_accuses_nobody(stalls: list[float]) -> None:
    """It ticks seven times at most, however late: less than the silence that it would have to see."""
    gateway = Gateway()
    for stall in stalls:
        gateway.at += stall
        gateway.time.tick(gateway.at)
    assert gateway.watch.accusation() == ""
