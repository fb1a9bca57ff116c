"""The three answers, as any thread gives them: busy is never dead, and a blocked event loop is not ready at once."""

from cluster.health.board import DEAD_S, LATE_S, HealthBoard


class Gateway:
    """A board with its watching thread, step by step."""

    def __init__(self) -> None:
        self.board = HealthBoard(["m", "other"])
        self.now = 0.0
        self.board.watch(self.now)

    def live(self, seconds: float, turning: bool = True) -> None:
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            if turning:
                self.board.turned({"m": "", "other": ""}, [])
            self.board.watch(self.now)

    @property
    def answers(self) -> tuple[int, int, int]:
        board = self.board
        return board.live().http_status, board.ready().http_status, board.progress().http_status


def test_it_is_alive_before_it_is_ready() -> None:
    gateway = Gateway()
    assert gateway.answers == (200, 503, 200)
    gateway.live(1.0)
    assert gateway.answers == (200, 200, 200)


def test_a_blocked_event_loop_is_unready_within_a_second_and_dead_after_a_minute() -> None:
    gateway = Gateway()
    gateway.live(1.0)
    gateway.live(LATE_S + 0.15, turning=False)
    assert gateway.answers == (200, 503, 200)
    assert "event loop" in gateway.board.ready().why[0]
    gateway.live(DEAD_S - 5.0, turning=False)
    assert gateway.answers == (200, 503, 200)
    gateway.live(5.0, turning=False)
    assert gateway.answers == (503, 503, 200)
    gateway.live(0.1)
    assert gateway.answers == (200, 200, 200)


def test_a_process_that_was_stopped_accuses_itself_of_nothing_when_it_wakes() -> None:
    gateway = Gateway()
    gateway.live(1.0)
    gateway.now += 3600.0
    gateway.board.watch(gateway.now)
    assert gateway.answers == (200, 200, 200)


def test_who_leaves_is_never_ready_again_but_alive() -> None:
    gateway = Gateway()
    gateway.live(1.0)
    gateway.board.leave()
    assert gateway.answers == (200, 503, 200)
    gateway.live(1.0)
    assert gateway.answers == (200, 503, 200)


def test_one_model_may_be_asked_for() -> None:
    board = Gateway().board
    board.turned({"m": "", "other": "no replica takes requests"}, ["other: 3 requests, and nothing has moved for 12 s"])
    assert board.ready("m").http_status == 200
    assert board.ready("other").why == board.ready().why == ["other: no replica takes requests"]
    assert board.ready("unknown").http_status == 503
    assert board.progress().http_status == 503
