"""Integer accumulator -> 8-bit value by one multiplication, proved at compile time.

A quantized layer's result goes ``acc -> float32(acc) * scale -> round(y / step) + zp``.  The
rounding steps of the whole chain are at some integers; a single factor whose products round over to
the next number at the same integers gives the same result for every accumulator, without the
division.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Steps are looked for up to here: accumulators and their neighbours are exact in float32.
LARGEST = (1 << 23) - 4

#: Candidates: the quotient of the scales, and what is up to so many float32 steps from it.
NEIGHBOURS = 4


def exact_factor(
    real: Callable[[Array], Array], slope: Array, step: float, zp: int, least: int, most: int,
    low: Array, high: Array,
) -> Array | None:  # fmt: skip
    """The factor f with ``rint(f * acc) == rint(real(acc) / step)`` wherever that is not saturated.

    Args:
        real: float32 ``[..., N]`` accumulators -> float32 values, non-decreasing.
        slope: float64 ``[N]``, about ``real(acc) / acc``, positive.
        step: scale of the quantization.
        zp, least, most: its zero point, and the range of its 8-bit type.
        low, high: int64 ``[N]``, bounds of the accumulators.

    Returns:
        float32 ``[N]``, or None where there is no such factor or the accumulators may be too large.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # a scale of zero has no factor
        ratio = slope / step
    if not np.all(ratio > 0) or not np.all(np.isfinite(ratio)):
        return None
    if np.max(np.maximum(np.abs(low), np.abs(high)) * ratio) > 2.0**30:
        return None  # the rounded product might not fit an int32
    # Between the numbers m and m + 1 both functions step at one integer near (m + 1/2) / ratio.
    halves = (np.arange(least - zp, most - zp) + 0.5)[:, None]
    near = np.rint(halves / ratio)
    inside = (near >= low - 2) & (near <= high + 2)
    if np.any(inside & (np.abs(near) > LARGEST)):
        return None
    acc = (np.where(inside, near, 0) + np.arange(-2, 3)[:, None, None]).astype(np.float32)
    want = np.rint(real(acc) / np.float32(step))
    if np.any(inside & ((want[0] > halves) | (want[-1] < halves))):
        return None  # the step is not where it is looked for
    best = ratio.astype(np.float32)
    result: Array = best.copy()
    left = np.arange(len(ratio))
    for k in range(2 * NEIGHBOURS + 1):
        ulps = (k + 1) // 2 * (1 if k % 2 else -1)
        candidate = (best[left].view(np.int32) + ulps).view(np.float32)
        same = np.rint(acc[:, :, left] * candidate) == want[:, :, left]
        fits = np.all(same | ~inside[:, left], axis=(0, 1))
        result[left[fits]] = candidate[fits]
        left = left[~fits]
        if not left.size:
            return result
    return None


def accumulator_bounds(w: Array, bias: Array) -> tuple[Array, Array]:
    """Bounds of ``sum_k x[k] w[n][k] + bias[n]`` for unsigned bytes x; int64 ``[N]`` each.

    Args:
        w: int8 ``[N, K]``.
        bias: int32 ``[N]``, with what the zero point of x contributes.
    """
    wide = w.astype(np.int32)
    low = 255 * np.minimum(wide, 0).sum(axis=1, dtype=np.int64) + bias
    high = 255 * np.maximum(wide, 0).sum(axis=1, dtype=np.int64) + bias
    return low, high
