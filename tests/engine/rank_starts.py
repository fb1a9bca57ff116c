"""What a rank process is told, for tests that stop before it loads anything; imports no torch."""

import os

from engine.config import EngineConfig
from engine.rank_frames import RankStart
from engine.rank_group import RankListener


def rank_start(rank: int, listener: RankListener, secret: bytes | None = None) -> RankStart:
    """One of two tensor-parallel ranks that call this listener."""
    return RankStart(
        rank=rank,
        tensor_parallel=2,
        pipeline_parallel=1,
        model="",
        folder="",
        config=EngineConfig(),
        host="127.0.0.1",
        port=listener.port,
        store_port=0,
        address="127.0.0.1",
        generation=0,
        secret=secret or listener.secret,
        parent_pid=os.getpid(),
        num_sharing=1,
        cores=(),
        gpu=0,
        num_threads=1,
        timeout_s=5.0,
    )
