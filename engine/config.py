"""Settings of one engine, as written in the config, and what a started engine derived from them.

Descriptions in `Meta` are the configuration reference (`docs/configuration.md` is generated from them).
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from engine.errors import ConfigError

PositiveInt = Annotated[int, Meta(ge=1)]


class DType(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Offload(StrEnum):
    NONE = "none"
    CPU = "cpu"
    NVME = "nvme"


class Batching(StrEnum):
    CONTINUOUS = "continuous"
    DYNAMIC = "dynamic"
    STATIC = "static"


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one replica of a model runs. Unknown keys are refused (`cluster.config` reads the file)."""

    dtype: Annotated[
        DType,
        Meta(
            description="Number format of weights and cache. `auto`: the checkpoint's own where the device "
            "computes it natively, else float32."
        ),
    ] = DType.AUTO
    device: Annotated[str, Meta(description="`auto` (cuda when there is one), `cpu`, `cuda` or `cuda:N`.")] = "auto"
    offload: Annotated[
        Offload,
        Meta(
            description="Where the layers' weights wait while they do not compute, for a model larger than the "
            "device's memory: two layers are on the device, the next one is fetched while one computes. `cpu`: in "
            "the host's memory, for a GPU. `nvme`: in a file of `offload_dir`."
        ),
    ] = Offload.NONE
    offload_dir: Annotated[
        str,
        Meta(
            description="Folder on a fast disk, with room for the layers (the file has no name and goes with the "
            "process). Unset: the one for temporary files."
        ),
    ] = ""
    max_model_len: Annotated[
        PositiveInt | None,
        Meta(description="Longest prompt plus output in tokens. Unset: the model's own limit."),
    ] = None
    max_num_seqs: Annotated[int, Meta(ge=1, le=4096, description="Sequences computed together.")] = 64
    max_batched_tokens: Annotated[
        int,
        Meta(ge=1, description="Token budget of one step; longer prompts are computed in chunks of it."),
    ] = 2048
    block_size: Annotated[
        int, Meta(ge=1, le=256, description="Tokens in one KV block, the unit of the prefix cache.")
    ] = 32
    kv_cache_tokens: Annotated[
        PositiveInt | None,
        Meta(description="Tokens the KV cache holds. Unset: from `kv_cache_memory`."),
    ] = None
    kv_cache_memory: Annotated[
        float,
        Meta(
            gt=0.0,
            lt=1.0,
            description="Share of the device's free memory for the KV cache (measured after the weights are "
            "loaded, and never more than every sequence at full length needs). On a CPU the share is divided by "
            "the number of replicas on the host and capped at 4 GiB.",
        ),
    ] = 0.85
    prefix_caching: Annotated[bool, Meta(description="Share computed blocks between equal prefixes.")] = True
    batching: Annotated[
        Batching,
        Meta(
            description="`continuous`: sequences join and leave at every step. `static` (a padded batch that waits "
            "for its longest) and `dynamic` (a static batch closed by size or time) are there for comparison."
        ),
    ] = Batching.CONTINUOUS
    batch_size: Annotated[int, Meta(ge=1, description="Batch of `static` and `dynamic`.")] = 16
    batch_timeout_s: Annotated[
        float, Meta(ge=0.0, description="`static` and `dynamic` start an unfilled batch after this many seconds.")
    ] = 0.1
    threads: Annotated[
        PositiveInt | None, Meta(description="CPU threads of the replica. Unset: its share of the host's cores.")
    ] = None
    check_invariants: Annotated[
        bool, Meta(description="Check the block bookkeeping after every step (slow; for hunting a bug).")
    ] = False

    def __post_init__(self) -> None:
        if self.offload_dir and self.offload is not Offload.NVME:
            raise ConfigError("engine.offload_dir", self.offload_dir, "is for engine.offload nvme: leave it out")
        if self.kv_cache_tokens is not None and self.kv_cache_tokens < self.block_size:
            raise ConfigError(
                "engine.kv_cache_tokens", self.kv_cache_tokens, f"give at least one block of {self.block_size} tokens"
            )
        if self.batching is not Batching.CONTINUOUS and self.batch_size > self.max_num_seqs:
            raise ConfigError(
                "engine.batch_size", self.batch_size, f"give at most max_num_seqs = {self.max_num_seqs}, or raise that"
            )


class ChainConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The built-in `chain` engine, whose next token is a hash of all tokens before it."""

    step_s: Annotated[float, Meta(ge=0.0, le=60.0, description="Seconds that a step lasts.")] = 0.01
    token_s: Annotated[
        float, Meta(ge=0.0, le=1.0, description="Seconds more for each token, of prompt or output, in the step.")
    ] = 0.0
    weights: Annotated[
        int, Meta(ge=0, lt=2**32, description="Another number stands for other weights: it gives other tokens.")
    ] = 0


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a started engine is: facts others need to talk to it. One per replica, fixed until it ends or is rebuilt."""

    model_path: str
    architecture: str
    weights_revision: str  #: hash over the weight files' headers and sizes; part of every block hash
    dtype: str
    device: str
    vocab_size: int
    max_model_len: int
    block_size: int
    num_blocks: int  #: that sequences can use (the null block is not counted)
    max_num_seqs: int
    max_steps_in_flight: int = 1  #: steps that may be under way at a time: one for each pipeline stage
    eos_token_ids: tuple[int, ...] = ()
    rank_pids: tuple[int, ...] = ()  #: process id by rank; empty when the engine computes in its own process
    num_rebuilds: int = 0  #: times that lost ranks were replaced
    startup_s: dict[str, float] = {}  #: seconds per phase: load, compile, warm_up, ...

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens the KV cache holds."""
        return self.num_blocks * self.block_size
