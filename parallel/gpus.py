"""Which GPU of its host each rank sees: one of its own. Import this before torch, which reads it once."""

from collections.abc import Mapping

from parallel.layout import LayoutError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_to_rank(index: int, environment: Mapping[str, str]) -> str:
    """`CUDA_VISIBLE_DEVICES` for the rank that takes GPU number `index` of those that its host lets it see."""
    if (visible := environment.get(VISIBLE)) is None:
        return str(index)
    gpus = [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    if index >= len(gpus):
        equation = f"GPU number {index} (from 0) of a host >= {len(gpus)} that {VISIBLE} = {visible!r} lets it see"
        raise LayoutError(equation, "give it one GPU for each rank, or choose fewer ranks")
    return gpus[index]
