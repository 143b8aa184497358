"""Ops that sum products over one extent: matrix products of floats and of integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.compiler.ir import Shape, Value
from sparsec.compiler.ops import Op
from sparsec.compiler.ops.elementwise import broadcast_shape

Attrs = Mapping[str, Any]

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
BYTES = (np.dtype(np.uint8), np.dtype(np.int8))


def matmul_shape(a: Shape, b: Shape) -> Shape:
    """Shape of ``numpy.matmul(a, b)``; raises ValueError where the operands do not fit."""
    if not a or not b:
        raise ValueError("matmul of a scalar")
    m = a if len(a) > 1 else (1, *a)
    n = b if len(b) > 1 else (*b, 1)
    if m[-1] != n[-2]:
        raise ValueError(f"matmul of {list(a)} and {list(b)}: inner extents differ")
    rows = m[-2:-1] if len(a) > 1 else ()
    columns = n[-1:] if len(b) > 1 else ()
    return (*broadcast_shape(m[:-2], n[:-2]), *rows, *columns)


def integer_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b`` of integers, exactly, as int32.

    Runs in float64, which BLAS does fast; every partial sum stays below 2**53, so nothing is
    rounded.  The result must fit int32, which it does for 8-bit operands of up to 33,000 terms.
    """
    exact = np.matmul(a.astype(np.float64), b.astype(np.float64))
    return np.asarray(exact.astype(np.int64).astype(np.int32))


def _infer_matmul(attrs: Attrs, a: Value, b: Value) -> list[tuple[Any, Shape]]:
    if a.dtype != b.dtype or a.dtype not in _FLOATS:
        raise ValueError(f"matmul of {a.dtype} and {b.dtype}")
    return [(a.dtype, matmul_shape(a.shape, b.shape))]


def _matmul(attrs: Attrs, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
    return (np.matmul(a, b),)


def _infer_matmul_integer(
    attrs: Attrs, a: Value, b: Value, za: Value | None = None, zb: Value | None = None
) -> list[tuple[Any, Shape]]:
    for operand, zero in ((a, za), (b, zb)):
        if operand.dtype not in BYTES:
            raise ValueError(f"matmul_integer of {operand.dtype}")
        if zero is not None and zero.dtype != operand.dtype:
            raise ValueError(f"zero point {zero.dtype} for {operand.dtype}")
    return [(np.int32, matmul_shape(a.shape, b.shape))]


def _matmul_integer(
    attrs: Attrs,
    a: np.ndarray,
    b: np.ndarray,
    za: np.ndarray | None = None,
    zb: np.ndarray | None = None,
) -> tuple[np.ndarray]:
    left, right = a.astype(np.int32), b.astype(np.int32)
    if za is not None:
        # One zero point for each row of a; that of b lines up with its columns by broadcasting.
        rows = za.astype(np.int32)
        left = left - (rows[:, None] if za.ndim == 1 and za.size > 1 else rows)
    if zb is not None:
        right = right - zb.astype(np.int32)
    return (integer_product(left, right),)


def _infer_linear(attrs: Attrs, x: Value, w: Value) -> list[tuple[Any, Shape]]:
    if x.dtype != np.float32 or w.dtype != np.float32:
        raise ValueError(f"linear of {x.dtype} and {w.dtype}")
    if len(w.shape) != 2 or not x.shape or x.shape[-1] != w.shape[1]:
        raise ValueError(f"linear of {list(x.shape)} with weights {list(w.shape)}")
    return [(np.float32, (*x.shape[:-1], w.shape[0]))]


def _linear(attrs: Attrs, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray]:
    return (np.matmul(x, w.T),)


def _infer_linear_integer(attrs: Attrs, x: Value, w: Value) -> list[tuple[Any, Shape]]:
    if x.dtype not in BYTES or w.dtype != np.int8:
        raise ValueError(f"linear_integer of {x.dtype} with weights {w.dtype}")
    if len(w.shape) != 2 or not x.shape or x.shape[-1] != w.shape[1]:
        raise ValueError(f"linear_integer of {list(x.shape)} with weights {list(w.shape)}")
    return [(np.int32, (*x.shape[:-1], w.shape[0]))]


def _linear_integer(attrs: Attrs, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray]:
    return (integer_product(x, w.T),)


ROWS = [
    Op("matmul", _infer_matmul, _matmul),
    Op("matmul_integer", _infer_matmul_integer, _matmul_integer),
    Op("linear", _infer_linear, _linear),
    Op("linear_integer", _infer_linear_integer, _linear_integer),
]
