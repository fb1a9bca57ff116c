"""What devices can do, from their makers' data sheets: memory, bandwidth, arithmetic, and the links between them.

Numbers for planning (`parallel.plan`), not measurements; `source` says where each row comes from. Times of collectives
are assumptions, marked as such.
"""

from dataclasses import dataclass

GIB = 1 << 30
MIB = 1 << 20
_GB, _TB, _TFLOPS = 1e9, 1e12, 1e12


@dataclass(frozen=True, slots=True)
class Device:
    """One device, or the share of a host's cores that a rank has. Bandwidths in bytes a second, one way."""

    name: str
    memory_bytes: int
    bandwidth: float
    flops: float  #: dense bfloat16 operations a second
    link: float  #: to another device of the node
    network: float  #: to a device of another node
    source: str
    overhead_bytes: int = 3 * GIB // 2  #: assumed: device context, collectives' buffers, what the allocator wastes
    sum_s: float = 12e-6  #: assumed: a small sum over the devices of a node
    hop_s: float = 20e-6  #: assumed: a small message to the next stage


#: Memory of GPUs is what nvidia-smi reports; network is one port a GPU, as in the maker's own systems.
DEVICES = {
    device.name: device
    for device in (
        Device(
            "h100", 81_559 * MIB, 3.35 * _TB, 989 * _TFLOPS, 450 * _GB, 50 * _GB,
            "NVIDIA H100 SXM data sheet; NVLink 4, 400 Gbit/s (DGX H100)",
        ),
        Device(
            "h200", 143_771 * MIB, 4.8 * _TB, 989 * _TFLOPS, 450 * _GB, 50 * _GB,
            "NVIDIA H200 SXM data sheet; NVLink 4, 400 Gbit/s (DGX H200)",
        ),
        Device(
            "b200", 183_359 * MIB, 8.0 * _TB, 2250 * _TFLOPS, 900 * _GB, 50 * _GB,
            "NVIDIA DGX B200 data sheet, an eighth; NVLink 5, 400 Gbit/s",
        ),
        Device(
            "a100-80", 81_920 * MIB, 2.039 * _TB, 312 * _TFLOPS, 300 * _GB, 25 * _GB,
            "NVIDIA A100 80GB SXM data sheet; NVLink 3, 200 Gbit/s (DGX A100)",
        ),
        Device(
            "l40s", 46_068 * MIB, 864 * _GB, 362 * _TFLOPS, 32 * _GB, 25 * _GB,
            "NVIDIA L40S data sheet; PCIe 4.0 x16, no NVLink; 200 Gbit/s assumed", sum_s=25e-6,
        ),
    )
}  # fmt: skip


def host_device(memory_bytes: int, num_ranks: int) -> Device:
    """What one of `num_ranks` ranks has of a host's cores and of its `memory_bytes`."""
    return Device(
        name="cpu",
        memory_bytes=memory_bytes // num_ranks,
        bandwidth=28 * _GB / num_ranks,
        flops=1 * _TFLOPS / num_ranks,
        link=10 * _GB,
        network=1.25 * _GB,
        source="free memory of this host; bandwidth of two cores (docs/benchmarks.md); the rest assumed",
        overhead_bytes=400 * MIB,
        sum_s=5e-6,
        hop_s=100e-6,
    )


def size_text(num_bytes: int) -> str:
    """In GiB, or in MiB below one."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:.1f} MiB"
