"""The planner's arithmetic, on sizes computed by hand from the published shapes of Llama 3."""

from dataclasses import replace

import pytest

from parallel.devices import DEVICES, GIB, Device, host_device
from parallel.part_sizes import LayerSize, ModelSizes, PartSizes
from parallel.plan import Candidate, Hosts, Load, explain, plan, without_beaten

LOAD = Load(context=8192, concurrency=64, block_size=32, batched_tokens=2048, kv_share=0.85)
SIZES = (1, 2, 3, 4, 8, 16)


def llama(num_layers: int, hidden: int, width: int, num_heads: int, num_kv_heads: int = 8) -> ModelSizes:
    """Bytes in bfloat16 of a Llama with heads of 128 and a vocabulary of 128,256, under a cut into equal parts."""
    parts = {}
    for size in SIZES:
        heads, kv_heads = num_heads // size, max(1, num_kv_heads // size)
        attention = hidden * 128 * (2 * heads + 2 * kv_heads)
        layer = 2 * (attention + 3 * hidden * width // size + 2 * hidden)
        sums = 2 if size > 1 else 0
        sizes = LayerSize(layer, 0, 2 * 2 * kv_heads * 128, heads * 128, sums)
        end = 2 * 128_256 * hidden // size
        parts[size] = PartSizes((sizes,) * num_layers, end, end, 2 * hidden, 0, max(hidden, width // size))
    splits = {
        count: tuple(range(stage * num_layers // count, (stage + 1) * num_layers // count) for stage in range(count))
        for count in SIZES
    }
    return ModelSizes(
        name="llama", architecture="LlamaForCausalLM", dtype="bfloat16", dtype_bytes=2, hidden_size=hidden,
        vocab_size=128_256, position_limit=131_072, num_parameters=0, is_tied=False, expert_share=1.0, parts=parts,
        splits=splits, tensor_refusals={}, pipeline_refusals={},
    )  # fmt: skip


LLAMA_8B = llama(32, 4096, 14_336, 32)
LLAMA_70B = llama(80, 8192, 28_672, 64)


def grid(candidates: list[Candidate], tensor_parallel: int, pipeline_parallel: int) -> Candidate:
    """The candidate of this grid."""
    wanted = (tensor_parallel, pipeline_parallel)
    return next(each for each in candidates if (each.tensor_parallel, each.pipeline_parallel) == wanted)


def test_llama_8b_runs_on_one_h100() -> None:
    """8.03 billion parameters, 131,072 bytes of keys and values a token; a token reads all but the embedding."""
    best = plan(LLAMA_8B, Hosts(DEVICES["h100"], 1, 1), LOAD)[0]
    assert (best.tensor_parallel, best.pipeline_parallel, best.replicas) == (1, 1, 1)
    assert best.memory is not None
    assert best.memory.weights == 16_060_522_496
    free = DEVICES["h100"].memory_bytes - 3 * GIB // 2 - 16_060_522_496
    assert best.memory.kv_cache == int(0.85 * free)
    assert best.kv_blocks == int(0.85 * free) // (32 * 131_072) - 1
    assert best.kv_tokens == 32 * best.kv_blocks
    assert best.concurrency == best.kv_tokens // 8192 == 53
    read = 16_060_522_496 - 2 * 128_256 * 4096 + 8192 * 131_072
    assert best.decode_alone == pytest.approx(3.35e12 / read)
    all_read = read + (best.concurrency - 1) * 8192 * 131_072
    assert best.decode_full == pytest.approx(best.concurrency * 3.35e12 / all_read)


def test_prefill_is_bound_by_arithmetic() -> None:
    best = plan(LLAMA_8B, Hosts(DEVICES["h100"], 1, 1), LOAD)[0]
    numbers = 16_060_522_496 / 2 - 128_256 * 4096
    assert best.prefill == pytest.approx(989e12 / (2 * numbers + 4 * 4096 * 32 * 4096))


def test_llama_70b_wants_four_h200() -> None:
    """70.6 billion parameters: 131.4 GiB. Two devices hold it and too little beside it; a node has room for two."""
    candidates = plan(LLAMA_70B, Hosts(DEVICES["h200"], 8, 2), LOAD)
    best = candidates[0]
    assert (best.tensor_parallel, best.pipeline_parallel, best.nodes, best.replicas) == (4, 1, 1, 4)
    assert best.stage_weights == (35_278_831_616,)
    pair = grid(candidates, 2, 1)
    assert not pair.refusal
    assert pair.concurrency < 64 < best.concurrency
    assert explain(candidates, LOAD) == (
        "tensor_parallel 4 x pipeline_parallel 1 on one node is the smallest grid that holds 64 sequences of "
        f"8,192 tokens: 2 devices would hold only {pair.concurrency}."
    )


def test_stages_inside_a_node_are_beaten_by_tensor_parallelism() -> None:
    candidates = without_beaten(plan(LLAMA_70B, Hosts(DEVICES["h200"], 8, 2), LOAD))
    grids = [(each.tensor_parallel, each.pipeline_parallel) for each in candidates if not each.refusal]
    assert grids == [(4, 1), (8, 1), (8, 2), (2, 1), (1, 1)]


def test_three_nodes_make_three_stages_but_no_part_of_one_does() -> None:
    tensor_and_stages = [
        (each.tensor_parallel, each.pipeline_parallel) for each in plan(LLAMA_8B, Hosts(DEVICES["h100"], 2, 3), LOAD)
    ]
    assert (2, 3) in tensor_and_stages
    assert (1, 3) not in tensor_and_stages


def test_sums_take_their_time() -> None:
    """Twice a layer and once for the embedding: a latency, and 2 * 3/4 of the hidden state over the link."""
    best = grid(plan(LLAMA_70B, Hosts(DEVICES["h200"], 8, 1), LOAD), 4, 1)
    read = 35_278_831_616 - 2 * 128_256 * 8192 // 4 + 8192 * 80 * 2 * 2 * 2 * 128
    one_sum = 12e-6 + 2 * 3 / 4 * 8192 * 2 / 450e9
    assert 1 / best.decode_alone == pytest.approx(read / 4.8e12 + 161 * one_sum)


def test_what_one_node_cannot_hold_goes_over_nodes_in_stages() -> None:
    candidates = plan(LLAMA_70B, Hosts(DEVICES["l40s"], 2, 2), replace(LOAD, concurrency=4))
    best = candidates[0]
    assert (best.tensor_parallel, best.pipeline_parallel, best.nodes, best.replicas) == (2, 2, 2, 1)
    assert "on 2 nodes" in explain(candidates, LOAD)
    assert grid(candidates, 2, 1).refusal.startswith("does not fit by")
    assert grid(candidates, 4, 1).refusal == "tensor parallel ranks would cross nodes: 4 ranks, 2 devices a node"


def test_stages_compute_different_sequences_and_the_slowest_sets_the_pace() -> None:
    """Of two stages of 16 layers the last one has the output layer too, which costs more than a hop."""
    candidates = plan(LLAMA_8B, Hosts(DEVICES["h100"], 2, 1), LOAD)
    best = grid(candidates, 1, 2)
    layers, head, half = 436_224_000 * 16, 2 * 128_256 * 4096 + 8192, best.concurrency / 2
    cached = 8192 * 131_072 // 2  # bytes that a stage reads for a sequence
    assert best.decode_full == pytest.approx(half * 3.35e12 / (layers + head + half * cached))
    alone_s = (2 * layers + head + 2 * cached) / 3.35e12 + 20e-6 + 2 * 4096 / 450e9
    assert 1 / best.decode_alone == pytest.approx(alone_s)
    one = grid(candidates, 1, 1)
    assert 1.8 * one.prefill < best.prefill < 2 * one.prefill


def test_the_lacking_memory_is_named() -> None:
    candidates = plan(LLAMA_70B, Hosts(DEVICES["h100"], 1, 1), LOAD)
    lacking = 141_107_412_992 + candidates[0].memory.activations + 3 * GIB // 2 - DEVICES["h100"].memory_bytes  # type: ignore[union-attr]
    assert candidates[0].refusal == f"does not fit by {lacking / GIB:.1f} GiB"
    assert explain(candidates, LOAD).startswith("Nothing fits")


def test_too_little_for_one_sequence_is_no_fit() -> None:
    context = 131_072
    candidates = plan(LLAMA_70B, Hosts(DEVICES["h200"], 1, 1), replace(LOAD, context=context, concurrency=1))
    assert candidates[0].refusal.endswith("of KV cache, less than one sequence of 131,072")


def test_most_is_best_where_nothing_holds_the_wish() -> None:
    candidates = plan(LLAMA_8B, Hosts(DEVICES["h100"], 2, 1), replace(LOAD, concurrency=4096))
    assert candidates[0].num_ranks == 2
    assert "none holds 4096 sequences" in explain(candidates, replace(LOAD, concurrency=4096))


def test_reasons_of_the_cut_are_passed_on() -> None:
    model = replace(LLAMA_8B, tensor_refusals={2: "7 heads"}, pipeline_refusals={2: "one layer"})
    candidates = plan(model, Hosts(DEVICES["h100"], 2, 1), LOAD)
    assert [(each.num_ranks, each.refusal) for each in candidates] == [(1, ""), (2, "7 heads"), (2, "one layer")]


def test_a_stage_holds_the_ends_that_it_needs() -> None:
    """Tied, the last stage needs the embedding too; an expert is read when a token of the batch goes to it."""
    part = PartSizes((LayerSize(100, 60, 4, 8, 2),) * 4, 1000, 0, 10, 1, 8)
    first = part.stage(range(2), is_first=True, is_last=False, is_tied=True)
    last = part.stage(range(2, 4), is_first=False, is_last=True, is_tied=True)
    assert (first.num_bytes, first.read_bytes, first.num_sums) == (1201, 81, 5)
    assert (last.num_bytes, last.read_bytes, last.num_sums) == (1211, 1091, 4)
    assert (first.expert_bytes, first.kv_bytes) == (120, 8)


def test_ranks_of_a_host_share_it() -> None:
    whole, half = host_device(8 * GIB, 1), host_device(8 * GIB, 2)
    for value in ("memory_bytes", "bandwidth", "flops"):
        assert getattr(half, value) * 2 == getattr(whole, value)


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)
def test_data_sheets_are_plausible(device: Device) -> None:
    assert 10 < device.memory_bytes / device.bandwidth * 1e3 < 100, "ms to read all memory"
    assert device.network <= device.link < device.bandwidth
    assert device.source
