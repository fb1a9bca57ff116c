"""A router with its gateways and replicas as plain values, for tests computed by hand."""

from cluster.config import RouterConfig
from cluster.frames import Announce, Enqueue, ReplicaInfo, Report
from cluster.router.router import Router
from cluster.routing.policy import policy_of
from engine.config import EngineInfo
from engine.request import EngineLoad


def engine_info(block_size: int = 4, num_blocks: int = 64, max_num_seqs: int = 4, revision: str = "r0") -> EngineInfo:
    return EngineInfo(
        model_path="nowhere", architecture="Chain", weights_revision=revision, dtype="float32", device="cpu",
        vocab_size=100, max_model_len=128, block_size=block_size, num_blocks=num_blocks, max_num_seqs=max_num_seqs,
    )  # fmt: skip


def replica_info(replica_id: str, model: str = "m", revision: str = "r0") -> ReplicaInfo:
    return ReplicaInfo(replica_id, model, "127.0.0.1", 1, [1], "host", engine_info(revision=revision))


def descriptor(request_id: str, *, tokens: int = 4, priority: int = 0, timeout_s: float = 60.0) -> Enqueue:
    return Enqueue(request_id, 0, "m", "default", priority, timeout_s, tokens, 16)


def load(free_slots: int = 4, free_blocks: int = 64, queued_tokens: int = 0) -> EngineLoad:
    return EngineLoad(1, 4 - free_slots, 0, free_slots, free_blocks, queued_tokens)


def router(**settings: float) -> Router:
    config = RouterConfig(**settings)  # type: ignore[arg-type]
    return Router(config, policy_of(config))


def add_replica(router: Router, replica_id: str, now: float = 0.0, **reported: int) -> ReplicaInfo:
    info = replica_info(replica_id)
    router.on_announce(Announce(info), now)
    router.on_report(info, Report(load(**reported), []), now)
    return info
