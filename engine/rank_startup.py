"""From a model's files to a replica of many ranks that is ready: start them, let them load, agree on the cache."""

import logging
import os
from collections.abc import Sequence

import msgspec

from engine.checkpoint import Checkpoint
from engine.config import EngineConfig, EngineInfo
from engine.errors import ConfigError, RankLost
from engine.fit_check import check_fit, refused_layout
from engine.kv_cache import fit_model_len
from engine.model_loader import choose_device
from engine.rank_frames import Allocate, Loaded, RankStart, Ready
from engine.rank_group import RankGroup, RankListener
from engine.rank_spawn import RankProcesses
from parallel.cores import CoreShare
from parallel.layout import LayoutError, RankLayout
from parallel.process_group import listen_store

log = logging.getLogger(__name__)

HOST = "127.0.0.1"  #: all ranks are on this host
LOAD_TIMEOUT_S = 600.0
_CALL_TIMEOUT_S = 60.0


def start_rank_group(
    checkpoint: Checkpoint,
    config: EngineConfig,
    layout: RankLayout,
    *,
    cores: Sequence[CoreShare] = (),
    num_replicas: int = 1,
    timeout_s: float,
) -> tuple[RankGroup, EngineInfo]:
    """Ranks that have loaded and met. `cores`: one share for each rank, or none.

    Raises `ModelRefused`, `ConfigError` or `RankLost`; then no process is left.
    """
    device = choose_device(config.device)
    if device.type != "cpu":
        raise ConfigError("engine.device", config.device, "many ranks run on CPUs only as yet: one rank, or device cpu")
    check_fit(checkpoint, config, layout, device)
    listener = RankListener(HOST)
    store = listen_store(HOST, timeout_s)
    common = _common_start(checkpoint, config, layout, (listener, store.port), num_replicas, timeout_s)
    processes = RankProcesses([_start_of(rank, common, cores) for rank in range(layout.world_size)])
    try:
        peers = listener.accept(layout.world_size, _CALL_TIMEOUT_S, lambda: _check_alive(processes))
        group = RankGroup(peers, processes, store, timeout_s)
        info = _agree(group, checkpoint, config, layout)
    except LayoutError as error:
        processes.close(force=True)
        raise refused_layout(error, layout) from error
    except BaseException:
        processes.close(force=True)
        raise
    finally:
        listener.close()
    return group, info


def _common_start(
    checkpoint: Checkpoint,
    config: EngineConfig,
    layout: RankLayout,
    meeting: tuple[RankListener, int],
    num_replicas: int,
    timeout_s: float,
) -> RankStart:
    """What all ranks are told alike; `meeting` is the driver's listener and the port of its store."""
    listener, store_port = meeting
    return RankStart(
        rank=0,
        tensor_parallel=layout.tensor_parallel,
        pipeline_parallel=layout.pipeline_parallel,
        model=checkpoint.name,
        folder=str(checkpoint.path),
        config=msgspec.structs.replace(config, device="cpu"),
        host=HOST,
        port=listener.port,
        store_port=store_port,
        generation=0,
        secret=listener.secret,
        driver_pid=os.getpid(),
        num_sharing=num_replicas * layout.world_size,
        cores=(),
        num_threads=config.threads or 1,
        timeout_s=timeout_s,
    )


def _start_of(rank: int, common: RankStart, cores: Sequence[CoreShare]) -> RankStart:
    if not cores:
        return msgspec.structs.replace(common, rank=rank)
    share = cores[rank]
    threads = common.config.threads or share.num_threads
    return msgspec.structs.replace(common, rank=rank, cores=share.cores, num_threads=threads)


def _check_alive(processes: RankProcesses) -> None:
    for rank, code in enumerate(processes.exit_codes()):
        if code is not None:
            raise RankLost(rank, 0, f"ended with {code} before it called; its log says why")


def _agree(group: RankGroup, checkpoint: Checkpoint, config: EngineConfig, layout: RankLayout) -> EngineInfo:
    """Wait until all have loaded; every rank gets as many KV blocks as the one with the least room."""
    loaded: dict[int, Loaded] = {}
    for peer, frame in group.hear(LOAD_TIMEOUT_S):
        if isinstance(frame, Loaded):
            loaded[peer.rank] = frame
        if len(loaded) == layout.world_size:
            break
    for rank, frame in sorted(loaded.items()):
        log.info("rank %d holds %.1f MiB of weights", rank, frame.num_weight_bytes / 2**20)
    num_blocks = min(frame.num_blocks for frame in loaded.values())
    max_model_len = fit_model_len(config, model_limit=loaded[0].position_limit, num_blocks=num_blocks)
    group.tell(Allocate(num_blocks, max_model_len))
    ready: set[int] = set()
    for peer, frame in group.hear(LOAD_TIMEOUT_S):
        if isinstance(frame, Ready):
            ready.add(peer.rank)
        if len(ready) == layout.world_size:
            break
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
        eos_token_ids=checkpoint.eos_token_ids,
        rank_pids=tuple(group.pids),
    )
