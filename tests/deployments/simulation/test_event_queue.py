"""Events happen in the order of time, then of planning."""

from deployments.simulation.event_queue import EventQueue


def test_time_moves_from_event_to_event() -> None:
    queue = EventQueue()
    seen: list[tuple[float, str]] = []
    queue.at(2.0, lambda name: seen.append((queue.now, name)), "second")
    queue.after(1.0, lambda name: seen.append((queue.now, name)), "first")
    queue.at(2.0, lambda name: seen.append((queue.now, name)), "third")
    while len(queue):
        queue.step()
    assert seen == [(1.0, "first"), (2.0, "second"), (2.0, "third")]


def test_what_should_have_happened_happens_now() -> None:
    queue = EventQueue()
    queue.after(5.0, lambda _: queue.at(1.0, lambda _: None, None), None)
    queue.step()
    queue.step()
    assert queue.now == 5.0
