"""Real rank processes: they say what one says, also after each of them was killed or frozen and replaced."""

import errno
import os
import signal
import socket
from pathlib import Path

import msgspec
import pytest

from engine.config import Offload
from engine.core import EngineCore
from engine.errors import RankLost
from engine.rank_group import RankGroup
from engine.rank_rebuild import RankRebuild
from engine.startup import start_engine, start_engine_of_ranks
from parallel.layout import RankLayout
from tests.engine.test_rank_group import gone, wait_until
from tests.engine.test_ranks import CONFIG, answers, arrivals
from tests.engine.tiny_models import save_tiny_model

ASKED = arrivals(3)
PATIENCE_S = 6.0  #: a rank on a busy machine is silent for a second or two


def step_to_the_end(core: EngineCore) -> dict[str, list[int]]:
    """The tokens of all that is asked."""
    got: dict[str, list[int]] = {}
    for _, request in ASKED:
        core.scheduler.add(request, 0.0)
    while (chunks := core.step(0.0)) is not None:
        for chunk in chunks:
            got.setdefault(chunk.request_id, []).extend(chunk.token_ids)
    return got


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("layout", "blows", "offload"),
    [
        (RankLayout(2, 1), [(0, signal.SIGKILL), (1, signal.SIGSTOP)], Offload.NVME),
        (RankLayout(1, 2), [(0, signal.SIGKILL), (1, signal.SIGKILL)], Offload.NONE),
    ],
    ids=str,
)
def test_a_lost_rank_is_named_and_replaced_and_the_tokens_are_the_same(
    layout: RankLayout, blows: list[tuple[int, signal.Signals]], offload: Offload, tmp_path: Path
) -> None:
    """Also with streamed layers."""
    folder = save_tiny_model("llama", tmp_path, num_hidden_layers=5)
    expected = answers(start_engine(str(folder), CONFIG)[0], ASKED)
    config = msgspec.structs.replace(
        CONFIG, offload=offload, offload_dir=str(tmp_path) if offload is Offload.NVME else ""
    )
    core, info = start_engine_of_ranks(str(folder), config, layout, rank_timeout_s=PATIENCE_S, num_spares=1)
    pids = [list(info.rank_pids)]
    try:
        assert core.rebuilder is not None and core.progress.patience_s > 0
        assert step_to_the_end(core) == expected
        for rank, blow in blows:
            core.scheduler.add(ASKED[0][1], 0.0)
            core.step(0.0)
            os.kill(pids[-1][rank], blow)
            why = "signal 9" if blow is signal.SIGKILL else "frozen"
            with pytest.raises(RankLost, match=rf"rank {rank}, step \d+: .*{why}") as raised:
                while core.step(0.0) is not None:
                    pass
            core.scheduler.hand_back("a rank is lost")
            pids.append(list(core.rebuilder.rebuild(raised.value).rank_pids))
            assert [old != new for old, new in zip(*pids[-2:], strict=True)] == [other == rank for other in (0, 1)]
            assert step_to_the_end(core) == expected
    finally:
        core.executor.close()
    assert gone([pid for each in pids for pid in each])


class NoSpares:
    """A `RankStarter` on a host that has no room for another process."""

    def keep_spares(self, count: int) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


def test_a_replica_for_which_no_spare_can_be_started_is_whole_without(caplog: pytest.LogCaptureFixture) -> None:
    rebuild = RankRebuild(None, NoSpares(), None, num_spares=1, start_s=1.0)  # type: ignore[arg-type]
    assert rebuild.may_begin(0.0)
    assert "no spare process could be started" in caplog.text and "Resource temporarily" in caplog.text


@pytest.mark.timeout(300)
def test_a_stage_with_two_steps_before_it_outlives_its_neighbour_but_not_its_driver(tmp_path: Path) -> None:
    folder = save_tiny_model("llama", tmp_path)
    core, info = start_engine_of_ranks(str(folder), CONFIG, RankLayout(1, 2), rank_timeout_s=PATIENCE_S, num_spares=1)
    first, last = info.rank_pids
    try:
        expected = step_to_the_end(core)
        for _, request in ASKED[:2]:
            core.scheduler.add(request, 0.0)
            os.kill(last, signal.SIGSTOP)
            core.submit(0.0)
        os.kill(first, signal.SIGKILL)
        assert wait_until(lambda: gone([first]))
        os.kill(last, signal.SIGCONT)
        with pytest.raises(RankLost, match=r"rank 0, step \d+: .*signal 9") as raised:
            core.collect()
            core.collect()
        assert core.rebuilder is not None
        core.scheduler.hand_back("a rank is lost")
        first, kept = core.rebuilder.rebuild(raised.value).rank_pids
        assert kept == last
        assert step_to_the_end(core) == expected
        os.kill(first, signal.SIGSTOP)
        core.scheduler.add(ASKED[0][1], 0.0)
        core.submit(0.0)
        assert isinstance(core.executor, RankGroup)
        core.executor._peers[1].connection.shutdown(socket.SHUT_RDWR)
        assert wait_until(lambda: gone([last])), "it waits for the other stage"
    finally:
        core.executor.close()
