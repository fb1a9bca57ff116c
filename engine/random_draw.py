"""Uniform numbers keyed by (seed, output index): the same alone, in a batch, after preemption, on another replica."""

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK_64 = (1 << 64) - 1


def seed_key(seed: int) -> int:
    """Any integer as an unsigned 64-bit key."""
    return seed & _MASK_64


def uniform(keys: npt.NDArray[np.uint64], indices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each (key, index): SplitMix64 over the mixed key, 52 bits of it."""
    with np.errstate(over="ignore"):
        bits = _mix(_mix(keys + _GOLDEN) + (indices.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    return bits ^ (bits >> np.uint64(31))
