"""Micro-benchmarks of the CPU kernels against torch's own: `python -m scripts.bench_kernels [linear|attention|...]`.

Both sides of a comparison run in turn in one loop and the fastest run of each counts, so that a busy machine slows
both alike: read the ratios, not the times.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from engine.kernels.library import Kernels, load_kernels
from engine.kernels.linear import PackedLinear

#: More than the caches hold: weights come from memory, as they do in a model's step.
_COLD_BYTES = 400_000_000
_LINEARS = ((896, 9728), (4864, 896), (896, 1152), (896, 896), (896, 32000), (512, 1536), (512, 32000))
_ROWS = (1, 2, 4, 8, 16, 32, 128, 544, 2048)


def fastest(sides: Sequence[Callable[[], object]], seconds: float = 0.25) -> list[float]:
    """Microseconds of each side's fastest call; the sides take turns."""
    best = [float("inf")] * len(sides)
    until = time.perf_counter() + seconds * len(sides)
    rounds = 0
    while time.perf_counter() < until or rounds < 5:
        rounds += 1
        for index, side in enumerate(sides):
            started = time.perf_counter()
            side()
            best[index] = min(best[index], (time.perf_counter() - started) * 1e6)
    return best


def bench_linear(kernels: Kernels, rows: Sequence[int]) -> None:
    """Packed linear against oneDNN's packed weights and, for scale, against `F.linear`."""
    print(
        f"\nlinear, bf16, {kernels.isa.name}, us: ours | oneDNN packed | F.linear | oneDNN / ours | GB/s, TFLOP/s of ours"
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
            print(
                f"{num_inputs:5} -> {num_outputs:5}  M={num_rows:<5}{mine:9.0f} |{theirs:9.0f} |{plain:9.0f} |"
                f"{theirs / mine:6.2f} | {weight_bytes / mine / 1e3:5.1f} {2 * num_rows * weight_bytes / 2 / mine / 1e6:5.2f}"
            )


def main() -> None:
    """Run what was asked for with each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["linear"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, nargs="+", default=list(_ROWS))
    options = parser.parse_args()
    kernels = load_kernels()
    if kernels is None:
        raise SystemExit("no kernels on this machine: see the log line above")
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(f"\n== {threads} thread(s)")
        with torch.inference_mode():
            if "linear" in options.what:
                bench_linear(kernels, options.rows)


if __name__ == "__main__":
    main()
