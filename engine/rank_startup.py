"""From a model's files to a replica of many ranks that is ready: start them, let them load, agree on the cache."""

import logging
from collections.abc import Collection

import msgspec

from engine.checkpoint import Checkpoint, read_checkpoint
from engine.config import EngineConfig, EngineInfo
from engine.device_choice import device_of_ranks
from engine.errors import RankLost
from engine.fit_check import measure_fit, refused_layout
from engine.kv_cache import fit_model_len
from engine.phases import Phases
from engine.rank_frames import Allocate, Load, Loaded, RankStart, Ready
from engine.rank_group import RankGroup, RankListener, RankPeer
from engine.rank_preflight import hear_all, hear_facts, hosts_of, preflight, rooms_of
from engine.rank_spawn import RankProcess, RankSpawner
from parallel.layout import LayoutError, RankLayout
from parallel.preflight import Preflight
from parallel.process_group import listen_store

log = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 600.0
_CALL_TIMEOUT_S = 60.0


class RankStarter:
    """Starts the ranks of one replica, at its start and in the place of lost ones. Owns where they call and meet."""

    def __init__(
        self, checkpoint: Checkpoint, config: EngineConfig, layout: RankLayout, spawner: RankSpawner, timeout_s: float
    ) -> None:
        self.layout = layout
        self.weights_revision = checkpoint.weights_revision
        self._spawner = spawner
        host = spawner.places[0].address  # of the driver
        self._listener = RankListener(host)
        self._store = listen_store(host, timeout_s)
        self._common = RankStart(
            rank=0,
            tensor_parallel=layout.tensor_parallel,
            pipeline_parallel=layout.pipeline_parallel,
            model=checkpoint.name,
            folder="",
            config=msgspec.structs.replace(config, device=device_of_ranks(config.device).type),
            host=host,
            port=self._listener.port,
            store_port=self._store.port,
            address=host,
            generation=0,
            secret=self._listener.secret,
            parent_pid=0,  # who starts it puts in its own
            num_sharing=1,
            cores=(),
            gpu=0,
            num_threads=config.threads or 1,
            timeout_s=timeout_s,
        )

    def start(self, ranks: Collection[int], generation: int = 0) -> tuple[list[RankPeer], list[RankProcess]]:
        """These ranks, in order, once they have called. Raises `RankLost` or OSError."""
        processes = {rank: self._start_one(rank, generation) for rank in sorted(ranks)}

        def check(rank: int) -> None:
            if (code := processes[rank].exit_code()) is not None:
                raise RankLost(rank, 0, f"ended with {code} before it called; its log says why")

        return self._listener.accept(ranks, _CALL_TIMEOUT_S, check), list(processes.values())

    def keep_spares(self, count: int) -> None:
        """See `RankSpawner`."""
        self._spawner.keep_spares(count)

    def close(self, *, force: bool) -> None:
        """End all ranks. See `RankSpawner`."""
        self._listener.close()
        self._spawner.close(force=force)

    def _start_one(self, rank: int, generation: int) -> RankProcess:
        position = self.layout.position(rank)
        place = self._spawner.places[position.pp_rank]
        start = msgspec.structs.replace(
            self._common,
            rank=rank,
            generation=generation,
            address=place.address,
            folder=place.folder,
            gpu=place.first_gpu + position.tp_rank,
            num_sharing=place.num_sharing,
        )
        if place.cores:
            share = place.cores[position.tp_rank]
            threads = start.config.threads or share.num_threads
            start = msgspec.structs.replace(start, cores=share.cores, num_threads=threads)
        return self._spawner.start(position.pp_rank, start)


def start_rank_group(
    checkpoint: Checkpoint,
    config: EngineConfig,
    layout: RankLayout,
    spawner: RankSpawner,
    timeout_s: float,
    phases: Phases,
) -> tuple[RankGroup, RankStarter, EngineInfo]:
    """Ranks that have met and loaded, and who has started them; the group closes the spawner.

    Raises `ModelRefused`, `ConfigError`, `RankMisfit` or `RankLost`; then no process is left.
    """
    try:
        starter, group, found = _check_ranks(checkpoint, config, layout, spawner, timeout_s, phases, is_rehearsal=False)
        for oddity in found.oddities:
            phases.note(f"preflight: {oddity}")
        with phases.phase("load"):
            return group, starter, _agree(group, checkpoint, config, layout)
    except LayoutError as error:
        spawner.close(force=True)
        raise refused_layout(error, layout) from error
    except BaseException:
        spawner.close(force=True)
        raise


def rehearse_ranks(
    model: str, config: EngineConfig, layout: RankLayout, spawner: RankSpawner, timeout_s: float, phases: Phases
) -> Preflight:
    """The preflight alone; no process is left. Raises as `start_rank_group` does."""
    try:
        checkpoint = read_checkpoint(spawner.find_model(model), model)
        _, group, found = _check_ranks(checkpoint, config, layout, spawner, timeout_s, phases, is_rehearsal=True)
        group.close()
        return found
    except LayoutError as error:
        spawner.close(force=True)
        raise refused_layout(error, layout) from error
    except BaseException:
        spawner.close(force=True)
        raise


def _check_ranks(
    checkpoint: Checkpoint,
    config: EngineConfig,
    layout: RankLayout,
    spawner: RankSpawner,
    timeout_s: float,
    phases: Phases,
    *,
    is_rehearsal: bool,
) -> tuple[RankStarter, RankGroup, Preflight]:
    """Ranks that have met, who has started them, and what was found."""
    device = device_of_ranks(config.device)
    fit = measure_fit(checkpoint, config, layout, device)
    with phases.phase("start_ranks"):
        starter = RankStarter(checkpoint, config, layout, spawner, timeout_s)
        group = RankGroup(*starter.start(range(layout.world_size)), starter, timeout_s)
        facts = hear_facts(group, layout)
    fit.check(rooms_of(facts), hosts_of(facts))
    with phases.phase("preflight"):
        found = preflight(group, layout, facts, checkpoint.weights_revision, is_rehearsal=is_rehearsal)
    return starter, group, found


def load_all(group: RankGroup, layout: RankLayout) -> list[Loaded]:
    """Let every rank have its part of the model; by rank."""
    group.tell(Load())
    loaded: list[Loaded] = hear_all(group, layout, Loaded, LOAD_TIMEOUT_S)
    return loaded


def allocate_all(group: RankGroup, layout: RankLayout, num_blocks: int, max_model_len: int) -> None:
    """Let every rank have a cache, and be ready to compute."""
    group.tell(Allocate(num_blocks, max_model_len))
    hear_all(group, layout, Ready, LOAD_TIMEOUT_S)


def _agree(group: RankGroup, checkpoint: Checkpoint, config: EngineConfig, layout: RankLayout) -> EngineInfo:
    """Wait until all have loaded; every rank gets as many KV blocks as the one with the least room."""
    loaded = load_all(group, layout)
    for rank, frame in enumerate(loaded):
        log.info("rank %d holds %.1f MiB of weights", rank, frame.num_weight_bytes / 2**20)
    num_blocks = min(frame.num_blocks for frame in loaded)
    max_model_len = fit_model_len(config, model_limit=loaded[0].position_limit, num_blocks=num_blocks)
    allocate_all(group, layout, num_blocks, max_model_len)
    return EngineInfo(
        model_path=str(checkpoint.path),
        architecture=checkpoint.architecture,
        weights_revision=checkpoint.weights_revision,
        dtype=loaded[0].dtype,
        device=loaded[0].device,
        vocab_size=loaded[0].vocab_size,
        max_model_len=max_model_len,
        block_size=config.block_size,
        num_blocks=num_blocks,
        max_num_seqs=config.max_num_seqs,
        max_steps_in_flight=layout.pipeline_parallel,
        eos_token_ids=checkpoint.eos_token_ids,
        rank_pids=tuple(group.pids),
    )
