"""Ops that sum products over one extent: matrix products of floats and of integers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsec.compiler.ir import BatchDim, Dim, Shape, Value
from sparsec.compiler.ops import flow
from sparsec.compiler.ops.elementwise import broadcast_shape
from sparsec.compiler.ops.row import Op, TypeRule

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


def float_product(attrs: Attrs, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b`` of floats, rounded before where the interpreter says so."""
    rounding = attrs.get("_rounding")
    if rounding is not None:
        a, b = rounding(a), rounding(b)
    return np.asarray(np.matmul(a, b))


def _linear(attrs: Attrs, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray]:
    return (float_product(attrs, x, w.T),)


def _infer_linear_integer(attrs: Attrs, x: Value, w: Value) -> list[tuple[Any, Shape]]:
    if x.dtype not in BYTES or w.dtype != np.int8:
        raise ValueError(f"linear_integer of {x.dtype} with weights {w.dtype}")
    if len(w.shape) != 2 or not x.shape or x.shape[-1] != w.shape[1]:
        raise ValueError(f"linear_integer of {list(x.shape)} with weights {list(w.shape)}")
    return [(np.int32, (*x.shape[:-1], w.shape[0]))]


def _linear_integer(attrs: Attrs, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray]:
    return (integer_product(x, w.T),)


def conv_out(attrs: Attrs, x: Shape, w: Shape) -> tuple[int, ...]:
    """Extents of a convolution's result along the spatial axes; ValueError where nothing fits."""
    rank, groups = len(w) - 2, int(attrs["groups"])
    strides, dilations = attrs["strides"], attrs["dilations"]
    what = f"convolution of {list(x)} with weights {list(w)} in {groups} groups"
    if rank < 1 or len(x) != rank + 2 or {len(strides), len(dilations)} != {rank}:
        raise ValueError(what)
    if any(isinstance(d, BatchDim) for d in (*x[1:], *w)):
        raise ValueError(f"{what}: extents are not known")
    channels, *size = (int(str(d)) for d in x[1:])
    maps, depth, *kernel = (int(str(d)) for d in w)
    if groups < 1 or depth * groups != channels or maps % groups:
        raise ValueError(what)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    fits = zip(size, spans, strides, strict=True)
    out = tuple((extent - span) // step + 1 for extent, span, step in fits)
    if min((*strides, *dilations, *kernel, *out)) < 1:
        raise ValueError(what)
    return out


def _infer_conv(attrs: Attrs, x: Value, w: Value) -> list[tuple[Any, Shape]]:
    if x.dtype != w.dtype or x.dtype not in _FLOATS:
        raise ValueError(f"conv of {x.dtype} with weights {w.dtype}")
    return [(x.dtype, (x.shape[0], w.shape[0], *conv_out(attrs, x.shape, w.shape)))]


def _infer_conv_integer(
    attrs: Attrs, x: Value, w: Value, zx: Value | None = None, zw: Value | None = None
) -> list[tuple[Any, Shape]]:
    for operand, zero, shapes in ((x, zx, [()]), (w, zw, [(), w.shape[:1]])):
        if operand.dtype not in BYTES:
            raise ValueError(f"conv_integer of {operand.dtype}")
        if zero is not None and (zero.dtype != operand.dtype or zero.shape not in shapes):
            raise ValueError(f"zero point {zero} for {operand}")
    return [(np.int32, (x.shape[0], w.shape[0], *conv_out(attrs, x.shape, w.shape)))]


def _patches(attrs: Attrs, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [groups, maps, depth] and patches [N, groups, depth, places]."""
    groups, rank = int(attrs["groups"]), w.ndim - 2
    out = conv_out(attrs, x.shape, w.shape)
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], attrs["dilations"], strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(2, 2 + rank)))
    steps = (1, 1, *attrs["strides"], *attrs["dilations"])
    windows = windows[tuple(slice(None, None, s) for s in steps)]
    inner, outer = range(2 + rank, 2 + 2 * rank), range(2, 2 + rank)
    depth = math.prod(w.shape[1:])
    columns = windows.transpose(0, 1, *inner, *outer)
    columns = columns.reshape(x.shape[0], groups, depth, math.prod(out))
    return w.reshape(groups, w.shape[0] // groups, depth), columns


def _conv(attrs: Attrs, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray]:
    weights, columns = _patches(attrs, x, w)
    out = conv_out(attrs, x.shape, w.shape)
    return (np.matmul(weights, columns).reshape(x.shape[0], w.shape[0], *out),)


def _conv_integer(
    attrs: Attrs,
    x: np.ndarray,
    w: np.ndarray,
    zx: np.ndarray | None = None,
    zw: np.ndarray | None = None,
) -> tuple[np.ndarray]:
    left, right = w.astype(np.int32), x.astype(np.int32)
    if zw is not None:
        left = left - zw.astype(np.int32).reshape(-1, *[1] * (w.ndim - 1))
    if zx is not None:
        right = right - zx.astype(np.int32)
    weights, columns = _patches(attrs, right, left)
    out = conv_out(attrs, x.shape, w.shape)
    return (integer_product(weights, columns).reshape(x.shape[0], w.shape[0], *out),)


def depth(attrs: Attrs, shapes: Sequence[Shape]) -> int:
    """The extent that a product of matrices sums over."""
    return _extent(shapes[0][-1])


def _patch(attrs: Attrs, shapes: Sequence[Shape]) -> int:
    return math.prod(map(_extent, shapes[1][1:]))


def _extent(dim: Dim) -> int:
    """An extent, for a batch of one."""
    return dim.coef if isinstance(dim, BatchDim) else dim


def linear_row(
    name: str, infer: TypeRule, reference: Callable[..., tuple[np.ndarray]], weights: str
) -> Op:
    """The row of a layer that multiplies rows with weights of that type."""
    return Op(
        name,
        infer,
        reference,
        flow.layer,
        linear=weights,
        layer=True,
        last_axis=True,
        row_operands=1,
        terms=depth,
    )


ROWS = [
    Op("matmul", _infer_matmul, _matmul, flow.matmul, terms=depth),
    Op("matmul_integer", _infer_matmul_integer, _matmul_integer, flow.matmul, terms=depth),
    Op("conv", _infer_conv, _conv, flow.conv, terms=_patch),
    Op("conv_integer", _infer_conv_integer, _conv_integer, flow.conv, terms=_patch),
    linear_row("linear", _infer_linear, _linear, "f32"),
    linear_row("linear_integer", _infer_linear_integer, _linear_integer, "i8"),
]
