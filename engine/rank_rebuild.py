"""RankRebuild: makes the ranks of a replica whole again after a loss: an `engine.core.Rebuilder`.

The survivors keep their weights and give up their group and what their KV caches held. A spare process, if one waits,
loads the part of each lost rank; all meet in the next generation of the group.
"""

import logging
import time

import msgspec

from engine.config import EngineInfo
from engine.errors import RankLost
from engine.rank_group import RankGroup
from engine.rank_preflight import hear_facts, preflight
from engine.rank_startup import RankStarter, allocate_all, load_all
from engine.rebuild_rule import RebuildRule, ranks_to_replace
from engine.warm_up import warm_up_briefly

log = logging.getLogger(__name__)


class RankRebuild:
    """Of one replica, whose start took `start_s`; keeps `num_spares` processes ready on each of its hosts."""

    def __init__(
        self, group: RankGroup, starter: RankStarter, info: EngineInfo, *, num_spares: int, start_s: float
    ) -> None:
        self._group, self._starter, self._info = group, starter, info
        self._num_spares = num_spares
        self._rule = RebuildRule(start_s)
        self._generation = 0
        self._keep_spares()

    def look(self) -> None:
        """See `Rebuilder`."""
        self._group.look()

    def may_begin(self, now: float) -> bool:
        """See `Rebuilder`."""
        return self._rule.may_begin(now)

    def rebuild(self, lost: RankLost) -> EngineInfo:
        """See `Rebuilder`."""
        began = time.monotonic()
        replaced = ranks_to_replace(lost.rank, self._group.ended)
        self._meet_again(replaced, whole_by=began + self._rule.bound_s)
        self._warm_up(replaced)
        self._group.be_whole()
        self._keep_spares()
        self._info = msgspec.structs.replace(
            self._info, rank_pids=tuple(self._group.pids), num_rebuilds=self._info.num_rebuilds + 1
        )
        log.warning("replaced rank %s in %.1f s", ", ".join(map(str, replaced)), time.monotonic() - began)
        return self._info

    def _keep_spares(self) -> None:
        """Or have none for the next loss: the replica is whole without."""
        try:
            self._starter.keep_spares(self._num_spares)
        except OSError as error:
            log.error("no spare process could be started, so the next loss takes longer to mend: %s", error)

    def _meet_again(self, replaced: list[int], whole_by: float) -> None:
        group, starter, layout = self._group, self._starter, self._starter.layout
        self._generation += 1
        group.abandon(replaced, self._generation, whole_by)
        for peer, process in zip(*starter.start(replaced, self._generation), strict=True):
            group.admit(peer, process)
        facts = hear_facts(group, layout)
        preflight(group, layout, facts, starter.weights_revision, is_rehearsal=False)
        load_all(group, layout)
        allocate_all(group, layout, self._info.num_blocks, self._info.max_model_len)

    def _warm_up(self, replaced: list[int]) -> None:
        progress = self._group.progress
        longest_gap_s = progress.longest_gap_s  # a first step says nothing about those to come
        if not warm_up_briefly(self._group, self._info):
            raise RankLost(replaced[0], 0, "since it was replaced the logits are not finite")
        progress.longest_gap_s = longest_gap_s
