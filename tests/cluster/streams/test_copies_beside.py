"""A copy of a stream is not kept where its gateway's host would take it along."""

from cluster.frames import Frame, Keep, Release
from cluster.streams.stream_copies import StreamCopies


class Shard:
    """The gateway's link to one."""

    is_open = True

    def __init__(self) -> None:
        self.sent: list[Frame] = []

    def send(self, frame: Frame) -> None:
        self.sent.append(frame)

    def close(self) -> None: ...

    def kinds(self) -> list[type[Frame]]:
        return [type(frame) for frame in self.sent]


def test_copies_go_to_shards_of_other_hosts() -> None:
    copies, beside, far = StreamCopies(60.0, 2), Shard(), Shard()
    copies.on_router(0, beside, is_on_this_host=True)
    copies.on_router(1, far)
    assert {copies.begin(f"stream-{number}", "", "m", b"").shard for number in range(20)} == {1}
    assert beside.sent == []


def test_on_one_host_all_are_used() -> None:
    copies = StreamCopies(60.0, 2)
    for shard in (0, 1):
        copies.on_router(shard, Shard(), is_on_this_host=True)
    assert {copies.begin(f"stream-{number}", "", "m", b"").shard for number in range(20)} == {0, 1}


def test_what_lies_beside_moves_when_another_host_has_a_shard() -> None:
    copies, beside, far = StreamCopies(60.0, 2), Shard(), Shard()
    copies.on_router(0, beside, is_on_this_host=True)
    copy = copies.begin("stream", "", "m", b"", journal=[b"so far"])
    copies.on_router(1, far)
    assert copy.shard == 1
    assert beside.kinds() == [Keep, Release]
    assert [frame.journal for frame in far.sent if isinstance(frame, Keep)] == [[b"so far"]]


def test_a_shard_that_comes_back_elsewhere_is_beside_no_longer() -> None:
    copies, other, moved = StreamCopies(60.0, 2), Shard(), Shard()
    copies.on_router(0, Shard(), is_on_this_host=True)
    copies.on_router(1, other)
    copies.on_router_lost(0)
    copies.on_router(0, moved)
    assert {copies.begin(f"stream-{number}", "", "m", b"").shard for number in range(20)} == {0, 1}
