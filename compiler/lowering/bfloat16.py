"""Floats as bfloat16, the upper halves of their bits, rounded as the CPU's instructions do."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: The types of products ("i8", "f32", "bf16") of floats at each precision (``targets.PRECISIONS``).
PRODUCTS = {"fp32": "f32", "bf16": "bf16"}


def to_bf16(array: Array) -> Array:
    """Bits of float32 numbers as bfloat16, uint16 of the same shape.

    To the nearest, ties to even, from the largest on to infinity; numbers below 2^-126 become zeros
    of their sign, NaN stays NaN (Intel's manual, VCVTNEPS2BF16).
    """
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    size = bits & 0x7FFFFFFF
    nan = size > 0x7F800000
    rounded = np.where(nan, 0, bits) + (0x7FFF + (bits >> 16 & 1)).astype(np.uint32)
    rounded = np.where(nan, bits | 0x400000, rounded)
    rounded = np.where(size < 0x00800000, bits & 0x80000000, rounded)
    return np.asarray(rounded >> 16, np.uint16)


def round_bf16(array: Array) -> Array:
    """Float32 numbers, each rounded to a bfloat16."""
    return from_bf16(to_bf16(array))


def from_bf16(bits: Array) -> Array:
    """The float32 numbers of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
