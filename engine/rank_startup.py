"""From a model's files to a replica of many ranks that is ready: start them, let them load, agree on the cache."""

import logging
from collections.abc import Sequence

import msgspec

from engine.checkpoint import Checkpoint
from engine.config import EngineConfig, EngineInfo
from engine.device_choice import device_of_ranks
from engine.errors import RankLost
from engine.fit_check import measure_fit, refused_layout
from engine.kv_cache import fit_model_len
from engine.phases import Phases
from engine.rank_frames import Allocate, Load, Loaded, RankStart, Ready
from engine.rank_group import RankGroup, RankListener
from engine.rank_preflight import Preflight, hear_all, hear_facts, preflight, rooms_of
from engine.rank_spawn import RankProcess, RankSpawner
from parallel.layout import LayoutError, RankLayout
from parallel.process_group import listen_store

log = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 600.0
_CALL_TIMEOUT_S = 60.0


def start_rank_group(
    checkpoint: Checkpoint,
    config: EngineConfig,
    layout: RankLayout,
    spawner: RankSpawner,
    timeout_s: float,
    phases: Phases,
) -> tuple[RankGroup, EngineInfo]:
    """Ranks that have met and loaded; the group closes the spawner.

    Raises `ModelRefused`, `ConfigError`, `RankMisfit` or `RankLost`; then no process is left.
    """
    try:
        group, found = _check_ranks(checkpoint, config, layout, spawner, timeout_s, phases, is_rehearsal=False)
        for oddity in found.oddities:
            phases.note(f"preflight: {oddity}")
        with phases.phase("load"):
            return group, _agree(group, checkpoint, config, layout)
    except LayoutError as error:
        spawner.close(force=True)
        raise refused_layout(error, layout) from error
    except BaseException:
        spawner.close(force=True)
        raise


def rehearse_ranks(
    checkpoint: Checkpoint,
    config: EngineConfig,
    layout: RankLayout,
    spawner: RankSpawner,
    timeout_s: float,
    phases: Phases,
) -> Preflight:
    """The preflight alone; no process is left. Raises `ConfigError`, `RankMisfit` or `RankLost`."""
    try:
        group, found = _check_ranks(checkpoint, config, layout, spawner, timeout_s, phases, is_rehearsal=True)
        group.close()
        return found
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
) -> tuple[RankGroup, Preflight]:
    """Ranks that have met, and what was found."""
    device = device_of_ranks(config.device)
    fit = measure_fit(checkpoint, config, layout, device)
    with phases.phase("start_ranks"):
        group = _start_group(checkpoint, config, layout, spawner, timeout_s)
        facts = hear_facts(group, layout)
    fit.check(rooms_of(facts))
    with phases.phase("preflight"):
        return group, preflight(group, layout, facts, checkpoint.weights_revision, is_rehearsal=is_rehearsal)


def _start_group(
    checkpoint: Checkpoint, config: EngineConfig, layout: RankLayout, spawner: RankSpawner, timeout_s: float
) -> RankGroup:
    """Ranks that have called."""
    host = spawner.places[0].address  # of the driver
    listener = RankListener(host)
    try:
        store = listen_store(host, timeout_s)
        common = RankStart(
            rank=0,
            tensor_parallel=layout.tensor_parallel,
            pipeline_parallel=layout.pipeline_parallel,
            model=checkpoint.name,
            folder="",
            config=msgspec.structs.replace(config, device=device_of_ranks(config.device).type),
            host=host,
            port=listener.port,
            store_port=store.port,
            address=host,
            generation=0,
            secret=listener.secret,
            parent_pid=0,  # who starts it puts in its own
            num_sharing=1,
            cores=(),
            gpu=0,
            num_threads=config.threads or 1,
            timeout_s=timeout_s,
        )
        processes = [_start_rank(rank, common, layout, spawner) for rank in range(layout.world_size)]
        peers = listener.accept(layout.world_size, _CALL_TIMEOUT_S, lambda: _check_alive(processes))
        return RankGroup(peers, processes, spawner, store, timeout_s)
    finally:
        listener.close()


def _start_rank(rank: int, common: RankStart, layout: RankLayout, spawner: RankSpawner) -> RankProcess:
    position = layout.position(rank)
    place = spawner.places[position.pp_rank]
    start = msgspec.structs.replace(
        common,
        rank=rank,
        address=place.address,
        folder=place.folder,
        gpu=place.first_gpu + position.tp_rank,
        num_sharing=place.num_sharing,
    )
    if place.cores:
        share = place.cores[position.tp_rank]
        threads = common.config.threads or share.num_threads
        start = msgspec.structs.replace(start, cores=share.cores, num_threads=threads)
    return spawner.start(position.pp_rank, start)


def _check_alive(processes: Sequence[RankProcess]) -> None:
    for rank, process in enumerate(processes):
        if (code := process.exit_code()) is not None:
            raise RankLost(rank, 0, f"ended with {code} before it called; its log says why")


def _agree(group: RankGroup, checkpoint: Checkpoint, config: EngineConfig, layout: RankLayout) -> EngineInfo:
    """Wait until all have loaded; every rank gets as many KV blocks as the one with the least room."""
    group.tell(Load())
    loaded: list[Loaded] = hear_all(group, layout, Loaded, LOAD_TIMEOUT_S)
    for rank, frame in enumerate(loaded):
        log.info("rank %d holds %.1f MiB of weights", rank, frame.num_weight_bytes / 2**20)
    num_blocks = min(frame.num_blocks for frame in loaded)
    max_model_len = fit_model_len(config, model_limit=loaded[0].position_limit, num_blocks=num_blocks)
    group.tell(Allocate(num_blocks, max_model_len))
    hear_all(group, layout, Ready, LOAD_TIMEOUT_S)
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
