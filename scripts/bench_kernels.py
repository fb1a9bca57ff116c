"""Micro-benchmarks of the CPU kernels against torch's own: `python -m scripts.bench_kernels [linear|attention|...]`.

Both sides of a comparison run in turn in one loop and the fastest run of each counts, so that a busy machine slows
both alike: read the ratios, not the times.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from engine.kernels.attention import NativeAttention
from engine.kernels.library import Isa, Kernels, load_kernels
from engine.kernels.linear import PackedLinear
from engine.kernels.metadata import AttentionMetadata
from engine.kernels.torch_attention import TorchAttention

#: More than the caches hold: weights come from memory, as they do in a model's step.
_COLD_BYTES = 400_000_000
_LINEARS = ((896, 9728), (4864, 896), (896, 1152), (896, 896), (896, 32000), (512, 1536), (512, 32000))
#: (sequences, query tokens each, context of each)
_ATTENTIONS = ((1, 1, 256), (8, 1, 256), (32, 1, 256), (1, 1, 1024), (8, 1, 1024), (32, 1, 1024), (1, 544, 544))
_QUERY_HEADS, _KV_HEADS, _HEAD_DIM = 14, 2, 64
_ROWS = (1, 2, 4, 8, 16, 32, 128, 544, 2048)


def fastest(sides: Sequence[Callable[[], object]], seconds: float = 0.25) -> list[float]:
    """Microseconds of each side's fastest call; the sides take turns."""
    best = [float("inf")] * len(sides)
    # With one thread its own CPU time says more than the clock on the wall: others may run beside.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    until = time.perf_counter() + seconds * len(sides)
    rounds = 0
    while time.perf_counter() < until or rounds < 5:
        rounds += 1
        for index, side in enumerate(sides):
            started = clock()
            side()
            best[index] = min(best[index], (clock() - started) * 1e6)
    return best


def bench_linear(kernels: Kernels, rows: Sequence[int]) -> None:
    """Packed linear against oneDNN's packed weights and, for scale, against `F.linear`."""
    print(
        f"\nlinear, bf16, {kernels.isa.name}, us: ours | oneDNN packed | F.linear | oneDNN / ours | ours GB/s, TFLOP/s"
    )
    for num_inputs, num_outputs in _LINEARS:
        weight_bytes = num_inputs * num_outputs * 2
        copies = max(1, _COLD_BYTES // weight_bytes // 3)
        weights = [torch.randn(num_outputs, num_inputs, dtype=torch.bfloat16) * 0.05 for _ in range(copies)]
        ours = [PackedLinear(kernels, weight) for weight in weights]
        onednn = [torch.ops.mkldnn._reorder_linear_weight(weight, None) for weight in weights]
        for num_rows in rows:
            x = torch.randn(num_rows, num_inputs, dtype=torch.bfloat16)
            turn = [0, 0, 0]

            def cold(side: int, items: Sequence[object], turn: list[int] = turn, copies: int = copies) -> object:
                turn[side] = (turn[side] + 1) % copies
                return items[turn[side]]

            mine, theirs, plain = fastest(
                [
                    lambda: cold(0, ours)(x),  # noqa: B023
                    lambda: torch.ops.mkldnn._linear_pointwise(x, cold(1, onednn), None, "none", [], ""),  # noqa: B023
                    lambda: F.linear(x, cold(2, weights)),  # noqa: B023
                ]
            )
            rates = f"{weight_bytes / mine / 1e3:5.1f} {num_rows * weight_bytes / mine / 1e6:5.2f}"
            print(
                f"{num_inputs:5} -> {num_outputs:5}  M={num_rows:<5}{mine:9.0f} |{theirs:9.0f} |{plain:9.0f} |"
                f"{theirs / mine:6.2f} | {rates}"
            )


def paged_case(
    num_sequences: int, query_len: int, context_len: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, AttentionMetadata]:
    """Query, key cache, value cache and metadata of equal sequences in shuffled blocks of 32."""
    per_sequence = -(-context_len // 32)
    tables = torch.randperm(num_sequences * per_sequence).to(torch.int32).view(num_sequences, per_sequence)
    cache = torch.randn(2, num_sequences * per_sequence, _KV_HEADS, 32, _HEAD_DIM).to(dtype)
    metadata = AttentionMetadata(
        query_start=torch.arange(num_sequences + 1, dtype=torch.int32) * query_len,
        context_lens=torch.full((num_sequences,), context_len, dtype=torch.int32),
        block_tables=tables,
        max_query_len=query_len,
        max_context_len=context_len,
    )
    query = torch.randn(num_sequences * query_len, _QUERY_HEADS, _HEAD_DIM).to(dtype)
    return query, cache[0], cache[1], metadata


def bench_attention(kernels: Kernels) -> None:
    """Paged attention against gather + SDPA a sequence, and prefill against SDPA on contiguous tensors."""
    scale = _HEAD_DIM**-0.5
    native, reference = NativeAttention(kernels), TorchAttention()
    print(f"\nattention, {_QUERY_HEADS} query heads, {_KV_HEADS} kv heads, dim {_HEAD_DIM}, {kernels.isa.name}, us")
    for dtype in (torch.bfloat16, torch.float32):
        for num_sequences, query_len, context_len in _ATTENTIONS:
            query, keys, values, metadata = paged_case(num_sequences, query_len, context_len, dtype)
            sides: list[Callable[[], object]] = [
                lambda q=query, k=keys, v=values, m=metadata: native.paged_attention(q, k, v, m, scale=scale),
                lambda q=query, k=keys, v=values, m=metadata: reference.paged_attention(q, k, v, m, scale=scale),
            ]
            if query_len == context_len:
                shape = (num_sequences, _QUERY_HEADS, query_len, _HEAD_DIM)
                q, k, v = (torch.randn(shape).to(dtype) for _ in range(3))
                sides.append(lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
            mine, theirs, *contiguous = fastest(sides)
            line = f"{str(dtype)[6:]:9} B={num_sequences:<3} q={query_len:<4} context={context_len:<5}"
            line += f"{mine:9.0f} | gather + SDPA {theirs:9.0f} ({theirs / mine:5.2f})"
            for time_us in contiguous:
                line += f" | contiguous SDPA {time_us:9.0f} ({time_us / mine:5.2f})"
            print(line)


def main() -> None:
    """Run what was asked for with each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["linear", "attention"], help="linear, attention")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, nargs="+", default=list(_ROWS))
    parser.add_argument("--isa", choices=[isa.name for isa in Isa], help="hold the kernels to lesser instructions")
    options = parser.parse_args()
    kernels = load_kernels()
    if kernels is None:
        raise SystemExit("no kernels on this machine: see the log line above")
    if options.isa:
        kernels = kernels.with_isa(Isa[options.isa])
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(f"\n== {threads} thread(s)")
        with torch.inference_mode():
            if "linear" in options.what:
                bench_linear(kernels, options.rows)
            if "attention" in options.what:
                bench_attention(kernels)


if __name__ == "__main__":
    main()
