"""Which grid of ranks suits a model on given devices: what each rank holds, what fits beside it, how fast it can be.

Pure arithmetic on sizes (`parallel.part_sizes`) and data sheets (`parallel.devices`). Memory is what loading will take;
speeds are bounds, from bytes to read, operations to compute and sums to wait for: nothing real is faster.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from parallel.devices import Device, size_text
from parallel.part_sizes import ModelSizes, StageSize

_LOGIT_COPIES, _FLOAT32_BYTES = 2, 4
_MOST = 64  #: ranks that the configuration takes in one direction
_HIDDEN_COPIES, _WIDE_COPIES = 6, 3  #: results of a layer that live at the same time: assumed


@dataclass(frozen=True, slots=True)
class Hosts:
    """`nodes` equal ones, each with `devices_per_node`."""

    device: Device
    devices_per_node: int
    nodes: int

    @property
    def num_devices(self) -> int:
        """On all nodes."""
        return self.devices_per_node * self.nodes


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine is to carry, and the settings that matter for it."""

    context: int  #: tokens of a sequence, prompt and output
    concurrency: int  #: sequences together
    block_size: int
    batched_tokens: int  #: in one step
    kv_share: float  #: of the memory that weights leave, what the cache gets

    @property
    def blocks_per_sequence(self) -> int:
        """KV blocks of one sequence."""
        return -(-self.context // self.block_size)


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes at the rank that has the least room for its cache."""

    weights: int
    activations: int
    overhead: int
    kv_cache: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """One grid, with the numbers of one replica. Where `refusal` is not empty, those that were not reckoned are 0."""

    tensor_parallel: int
    pipeline_parallel: int
    nodes: int  #: that a replica lies on
    replicas: int  #: that the devices hold
    refusal: str = ""
    memory: RankMemory | None = None
    stage_weights: tuple[int, ...] = ()  #: bytes at one rank of each stage
    kv_blocks: int = 0
    kv_tokens: int = 0
    concurrency: int = 0  #: sequences of the asked length that the cache holds
    decode_alone: float = 0.0  #: tokens/s of one sequence
    decode_full: float = 0.0  #: tokens/s of `concurrency` sequences together
    prefill: float = 0.0  #: prompt tokens/s

    @property
    def num_ranks(self) -> int:
        """Devices of one replica."""
        return self.tensor_parallel * self.pipeline_parallel


def grid_sizes(hosts: Hosts) -> tuple[list[int], list[int]]:
    """The values of tensor_parallel and of pipeline_parallel that are worth a look."""
    powers = [1 << exponent for exponent in range(min(hosts.num_devices, _MOST).bit_length())]
    fills = {min(hosts.devices_per_node, _MOST)}
    return sorted({*powers, *fills}), sorted({*powers, *range(1, min(hosts.nodes, _MOST) + 1)})


def plan(model: ModelSizes, hosts: Hosts, load: Load) -> list[Candidate]:
    """Every grid, the best first.

    Best is the smallest that holds the wanted concurrency, with the fewest stages: tensor parallelism inside a node,
    pipeline parallelism across nodes. Where none holds it, the one that holds most. Refused grids come last.
    """

    def rank_of(candidate: Candidate) -> tuple[float, ...]:
        is_small = candidate.concurrency < load.concurrency
        wanted = -candidate.concurrency if is_small else 0
        return (bool(candidate.refusal), is_small, wanted, candidate.num_ranks, candidate.pipeline_parallel)

    return sorted(_candidates(model, hosts, load), key=rank_of)


def without_beaten(candidates: list[Candidate]) -> list[Candidate]:
    """Without grids that fit, but of which another has as many ranks in fewer stages on as few nodes."""
    fitting = [each for each in candidates if not each.refusal]

    def is_beaten(each: Candidate) -> bool:
        return any(
            other.num_ranks == each.num_ranks
            and other.pipeline_parallel < each.pipeline_parallel
            and other.nodes <= each.nodes
            for other in fitting
        )

    return [each for each in candidates if each.refusal or not is_beaten(each)]


def explain(candidates: list[Candidate], load: Load) -> str:
    """Why the first of them is first."""
    best = candidates[0]
    grid = f"tensor_parallel {best.tensor_parallel} x pipeline_parallel {best.pipeline_parallel}"
    if best.refusal:
        return "Nothing fits: give more or larger devices, a smaller dtype or a shorter context, or engine.offload."
    place = "one node" if best.nodes == 1 else f"{best.nodes} nodes"
    wanted = f"{load.concurrency} sequences of {load.context:,} tokens"
    if best.concurrency < load.concurrency:
        return f"{grid} on {place} holds most, {best.concurrency} sequences at a time: none holds {wanted}."
    if best.num_ranks == 1:
        return f"One device holds {wanted}: nothing need be split."
    smaller = [other for other in candidates if other.num_ranks < best.num_ranks and not other.refusal]
    if smaller:
        most = max(smaller, key=lambda other: other.concurrency)
        small = f"{most.num_ranks} device{'s' * (most.num_ranks > 1)}"
        reason = f"{small} would hold only {most.concurrency}"
    else:
        reason = "nothing smaller fits"
    stages = (
        "" if best.pipeline_parallel == 1 else " Stages compute different sequences; each token passes all of them."
    )
    return f"{grid} on {place} is the smallest grid that holds {wanted}: {reason}.{stages}"


def _candidates(model: ModelSizes, hosts: Hosts, load: Load) -> Iterator[Candidate]:
    tensor_sizes, stage_counts = grid_sizes(hosts)
    for size in tensor_sizes:
        for count in stage_counts:
            fills_nodes = size == hosts.devices_per_node  # then there may be as many stages as nodes
            is_possible = size * count <= hosts.num_devices and (count == 1 or size <= hosts.devices_per_node)
            if is_possible and (fills_nodes or count & (count - 1) == 0):
                yield _examine(model, hosts, load, size, count)


def _examine(model: ModelSizes, hosts: Hosts, load: Load, size: int, count: int) -> Candidate:
    placed = _place(model, hosts, size, count)
    return placed if placed.refusal else _fill(model, hosts, load, placed)


def _place(model: ModelSizes, hosts: Hosts, size: int, count: int) -> Candidate:
    """Whether the grid can be cut and laid on the nodes: whole stages inside a node."""
    stages_per_node = hosts.devices_per_node // size
    nodes = -(-count // stages_per_node) if stages_per_node else -(-size // hosts.devices_per_node)
    per_node = hosts.devices_per_node // (size * count)
    replicas = per_node * hosts.nodes if per_node else hosts.nodes // nodes
    refusal = model.tensor_refusals.get(size, "") or model.pipeline_refusals.get(count, "")
    if not refusal and not stages_per_node:
        refusal = f"tensor parallel ranks would cross nodes: {size} ranks, {hosts.devices_per_node} devices a node"
    if not refusal and nodes > hosts.nodes:
        refusal = f"{count} stages of {size} ranks need {nodes} nodes"
    return Candidate(size, count, nodes, replicas, refusal)


def _fill(model: ModelSizes, hosts: Hosts, load: Load, placed: Candidate) -> Candidate:
    """The same with what its ranks hold, and how fast it can be, or why it does not fit."""
    size, device = placed.tensor_parallel, hosts.device
    stages = model.stages(size, placed.pipeline_parallel)
    activations = _activations(model, load, size)
    memories = [_memory(stage, activations, device, load) for stage in stages]
    counts = [
        memory.kv_cache // (stage.kv_bytes * load.block_size) - 1  # one is the null block
        for stage, memory in zip(stages, memories, strict=True)
    ]
    blocks = max(0, min(counts))
    placed = replace(
        placed,
        memory=memories[counts.index(min(counts))],
        stage_weights=tuple(stage.num_bytes for stage in stages),
        kv_blocks=blocks,
        kv_tokens=blocks * load.block_size,
        concurrency=blocks // load.blocks_per_sequence,
    )
    lacking = max(placed.stage_weights) + activations + device.overhead_bytes - device.memory_bytes
    if lacking > 0:
        return replace(placed, refusal=f"does not fit by {size_text(lacking)}")
    if placed.concurrency < 1:
        room = f"room for {placed.kv_tokens:,} tokens of KV cache"
        return replace(placed, refusal=f"{room}, less than one sequence of {load.context:,}")
    clock = _Clock(model, hosts, size, stages, placed.nodes)
    return replace(
        placed,
        decode_alone=clock.decode_rate(1, load.context),
        decode_full=clock.decode_rate(placed.concurrency, load.context),
        prefill=clock.prefill_rate(min(load.batched_tokens, load.context), load.context),
    )


def _activations(model: ModelSizes, load: Load, size: int) -> int:
    """An allowance: what a layer computes for one step's tokens, and logits of every sequence."""
    per_token = _HIDDEN_COPIES * model.hidden_size + _WIDE_COPIES * model.parts[size].widest
    logits = _LOGIT_COPIES * load.concurrency * model.vocab_size * _FLOAT32_BYTES
    return load.batched_tokens * per_token * model.dtype_bytes + logits


def _memory(stage: StageSize, activations: int, device: Device, load: Load) -> RankMemory:
    """As the engine sizes its cache: a share of what the weights leave, and never what activations need."""
    free = device.memory_bytes - device.overhead_bytes - stage.num_bytes
    kv_cache = max(0, min(int(free * load.kv_share), free - activations))
    return RankMemory(stage.num_bytes, activations, device.overhead_bytes, kv_cache)


class _Clock:
    """How fast one replica can be: each of its stages computes another step, as many as are under way."""

    def __init__(self, model: ModelSizes, hosts: Hosts, size: int, stages: list[StageSize], nodes: int) -> None:
        self._model, self._device, self._size, self._stages = model, hosts.device, size, stages
        self._hop_bandwidth = hosts.device.link if nodes == 1 else hosts.device.network

    def decode_rate(self, num_sequences: int, context: int) -> float:
        """Tokens a second of so many sequences that have reached `context` tokens, dealt out to the steps under way."""
        num_steps = min(num_sequences, len(self._stages))
        return self._rate(num_sequences / num_steps, context, context, num_steps)

    def prefill_rate(self, num_tokens: int, context: int) -> float:
        """Prompt tokens a second, in steps of `num_tokens`, over a prompt of `context`."""
        return self._rate(num_tokens, 0, context // 2, len(self._stages))

    def _rate(self, num_tokens: float, cached: int, attended: int, num_steps: int) -> float:
        """Tokens a second in steps of `num_tokens`: the slowest stage sets the pace, or the way through all of them."""
        stages_s = [self._stage_s(stage, num_tokens, cached, attended) for stage in self._stages]
        way_s = sum(stages_s) + self._hops_s(num_tokens)
        pace_s: float = max(way_s / num_steps, *stages_s)
        return num_tokens / pace_s

    def _stage_s(self, stage: StageSize, num_tokens: float, cached: int, attended: int) -> float:
        """Reading and computing overlap, sums do not. `cached` tokens are read anew for each of `num_tokens`."""
        share = self._model.expert_share
        touched: float = 1.0 - (1.0 - share) ** num_tokens
        read = stage.read_bytes + touched * stage.expert_bytes + num_tokens * cached * stage.kv_bytes
        numbers = (stage.read_bytes + share * stage.expert_bytes) / self._model.dtype_bytes
        attention = 4.0 * attended * sum(layer.query_width for layer in stage.layers)
        flops = num_tokens * (2.0 * numbers + attention)
        busy_s = max(read / self._device.bandwidth, flops / self._device.flops)
        return busy_s + stage.num_sums * self._sum_s(num_tokens)

    def _sum_s(self, num_tokens: float) -> float:
        """Hidden states of so many tokens over the group, as a ring at best."""
        if self._size == 1:
            return 0.0
        sent = 2.0 * (self._size - 1) / self._size * self._hidden_bytes(num_tokens)
        return self._device.sum_s + sent / self._device.link

    def _hops_s(self, num_tokens: float) -> float:
        hop_s = self._device.hop_s + self._hidden_bytes(num_tokens) / self._hop_bandwidth
        return (len(self._stages) - 1) * hop_s

    def _hidden_bytes(self, num_tokens: float) -> float:
        return num_tokens * self._model.hidden_size * self._model.dtype_bytes
