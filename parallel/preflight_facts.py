"""What the ranks of one replica are, compared before they load: the one that differs is named. Pure code."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from parallel.layout import RankLayout

#: What every rank must have alike, for otherwise results are wrong or nothing comes; and what to do about it.
MUST_AGREE = {
    "manta": "install the same Manta on its host",
    "torch": "install the same torch on its host (scripts/setup takes the pinned one)",
    "transformers": "install the same transformers on its host (scripts/setup takes the pinned one)",
    "device": "give engine.device, or ranks on devices of one kind",
    "nccl": "install the same torch build on its host, and no NCCL of its own",
    "kernels": "`python -m engine.kernels.build` on its host says why they cannot be compiled",
    "dtype": "the hosts choose differently: set engine.dtype",
    "weights": "copy the same checkpoint to its host",
}
#: What may differ, but slows the others down or is hardly meant.
SHOULD_AGREE = {
    "python": "install the same Python on its host",
    "device_name": "the slowest device sets the pace: give all ranks the same",
}
#: Clocks further apart than this make the logs of two hosts hard to read together; nothing else depends on them.
CLOCK_APART_S = 1.0
#: All ranks get as many KV blocks as the one with the least room: less free memory than this share of the others'
#: median takes cache from all.
LEAST_FREE_SHARE = 0.5


class RankFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank says of itself before it loads anything."""

    host: str
    memory_domain: str  #: equal where two ranks can open each other's memory: one kernel, one process table
    manta: str  #: version and a digest of the code that ranks run
    python: str
    torch: str
    transformers: str
    nccl: str  #: empty on a CPU
    device: str  #: "cpu" or "cuda"
    device_name: str  #: with what it can compute
    device_id: str  #: of a GPU; empty on a CPU
    kernels: str  #: "compiled" or "none"
    dtype: str  #: that it will compute in
    weights: str  #: revision of the checkpoint it has
    num_threads: int
    free_bytes: int  #: on its device; on a CPU of its host
    host_free_bytes: int  #: for all ranks of its `memory_domain`


@dataclass(frozen=True)
class Oddity:
    """One rank that is not like the others. `refuses`: it would give wrong results or none."""

    rank: int
    host: str
    what: str
    remedy: str
    refuses: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} {self.what}: {self.remedy}"


class Transport(StrEnum):
    """How tensors go from rank to rank."""

    MEMORY = "shared memory"
    GLOO = "gloo"
    NCCL = "NCCL"
    STAGED = "gloo through host memory"  #: of GPUs that several ranks share, which NCCL refuses


@dataclass(frozen=True)
class Transports:
    """Of the tensor group of each stage, and of the pipes between stages."""

    tensor: tuple[Transport, ...]
    pipe: Transport


def choose_transports(facts: Sequence[RankFacts], layout: RankLayout) -> Transports:
    """The fastest that works: NCCL between GPUs; between CPUs shared memory inside a host, gloo elsewhere."""
    if facts[0].device == "cuda":
        shared = len({fact.device_id for fact in facts}) < len(facts)
        transport = Transport.STAGED if shared else Transport.NCCL
        return Transports((transport,) * layout.pipeline_parallel, transport)
    stages = [[facts[rank] for rank in layout.stage_ranks(stage)] for stage in range(layout.pipeline_parallel)]
    tensor = (
        Transport.MEMORY
        if len({fact.memory_domain for fact in stage}) == 1 and stage[0].kernels == "compiled"
        else Transport.GLOO
        for stage in stages
    )
    return Transports(tuple(tensor), Transport.GLOO)


def compare_facts(
    facts: Sequence[RankFacts], clock_offsets_s: Sequence[float], expected: Mapping[str, str]
) -> list[Oddity]:
    """All that is odd, what refuses first. `expected`: values that the driver knows to be right."""
    oddities = []
    for field, remedy in {**MUST_AGREE, **SHOULD_AGREE}.items():
        values = [getattr(fact, field) for fact in facts]
        right = expected.get(field) or Counter(values).most_common(1)[0][0]
        whose = "its driver has" if field in expected else "the others have"
        for rank, value in enumerate(values):
            if value != right:
                what = f"has {field.replace('_', ' ')} {value or 'none'}, {whose} {right or 'none'}"
                oddities.append(Oddity(rank, facts[rank].host, what, remedy, field in MUST_AGREE))
    return oddities + _shared_devices(facts) + _odd_clocks(facts, clock_offsets_s) + _odd_memory(facts)


def _shared_devices(facts: Sequence[RankFacts]) -> list[Oddity]:
    first: dict[str, int] = {}
    oddities = []
    for rank, fact in enumerate(facts):
        owner = first.setdefault(fact.device_id, rank)
        if fact.device_id and owner != rank:
            what = f"shares its GPU with rank {owner}: they talk through host memory"
            oddities.append(Oddity(rank, fact.host, what, "give each rank a GPU of its own"))
    return oddities


def _odd_clocks(facts: Sequence[RankFacts], offsets_s: Sequence[float]) -> list[Oddity]:
    return [
        Oddity(rank, facts[rank].host, f"has a clock {offset:+.1f} s off its driver's", "keep its host's clock by NTP")
        for rank, offset in enumerate(offsets_s)
        if abs(offset) > CLOCK_APART_S
    ]


def _odd_memory(facts: Sequence[RankFacts]) -> list[Oddity]:
    oddities = []
    for rank, fact in enumerate(facts):
        others = [other.free_bytes for other in facts if other is not fact]
        if others and fact.free_bytes < LEAST_FREE_SHARE * (usual := median(others)):
            what = f"has {fact.free_bytes / 2**30:.1f} GiB free, the others {usual / 2**30:.1f} GiB"
            oddities.append(Oddity(rank, fact.host, what, "the KV cache of all is cut to its size: free memory there"))
    return oddities


def median(values: Sequence[float]) -> float:
    """The lower one of an even number."""
    return sorted(values)[(len(values) - 1) // 2]
