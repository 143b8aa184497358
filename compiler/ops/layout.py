"""Layout ops: they move elements and do not change them.

Attributes are fully resolved: ``shape`` holds ints and multiples of the batch size (no -1, no 0
that means "copy"), axes are not negative.  ``slice`` takes the elements ``range(start, end, step)``
of each axis it names, with starts and ends already clamped to the axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.compiler.ir import BatchDim, Dim, Shape, Value, bind_shape, element_count
from sparsec.compiler.ops import flow
from sparsec.compiler.ops.elementwise import broadcast_shape
from sparsec.compiler.ops.row import Op

Attrs = Mapping[str, Any]
Types = list[tuple[Any, Shape]]
Arrays = tuple[np.ndarray, ...]


def _check_axis(op: str, axis: int, rank: int) -> None:
    if not 0 <= axis < rank:
        raise ValueError(f"{op} on axis {axis} of a tensor of rank {rank}")


def _infer_reshape(attrs: Attrs, x: Value) -> Types:
    shape = tuple(attrs["shape"])
    if any(not isinstance(d, BatchDim) and d < 0 for d in shape):
        raise ValueError(f"reshape to {list(shape)}: negative extents must be resolved")
    if element_count(shape) != element_count(x.shape):
        raise ValueError(f"reshape of {list(x.shape)} to {list(shape)} changes the element count")
    return [(x.dtype, shape)]


def _reshape(attrs: Attrs, x: np.ndarray) -> Arrays:
    return (x.reshape(bind_shape(attrs["shape"], attrs["_batch"])),)


def _infer_transpose(attrs: Attrs, x: Value) -> Types:
    perm = tuple(attrs["perm"])
    if sorted(perm) != list(range(len(x.shape))):
        raise ValueError(f"{perm} is no permutation of the axes of {list(x.shape)}")
    return [(x.dtype, tuple(x.shape[p] for p in perm))]


def _transpose(attrs: Attrs, x: np.ndarray) -> Arrays:
    return (np.transpose(x, attrs["perm"]),)


def _infer_expand(attrs: Attrs, x: Value) -> Types:
    shape = tuple(attrs["shape"])
    if broadcast_shape(x.shape, shape) != shape:
        raise ValueError(f"{list(x.shape)} does not expand to {list(shape)}")
    return [(x.dtype, shape)]


def _expand(attrs: Attrs, x: np.ndarray) -> Arrays:
    return (np.broadcast_to(x, bind_shape(attrs["shape"], attrs["_batch"])),)


def _infer_concat(attrs: Attrs, *values: Value) -> Types:
    axis = attrs["axis"]
    first = values[0]
    _check_axis("concat", axis, len(first.shape))
    total: Dim = 0
    for v in values:
        rest = v.shape[:axis] + v.shape[axis + 1 :]
        if v.dtype != first.dtype or rest != first.shape[:axis] + first.shape[axis + 1 :]:
            raise ValueError(f"concat on axis {axis} of {first} and {v}")
        total = total + v.shape[axis]
    if isinstance(total, BatchDim) and total.const:
        raise ValueError(f"concat on axis {axis} gives the extent {total}")
    return [(first.dtype, (*first.shape[:axis], total, *first.shape[axis + 1 :]))]


def _concat(attrs: Attrs, *arrays: np.ndarray) -> Arrays:
    return (np.concatenate(arrays, attrs["axis"]),)


def _infer_slice(attrs: Attrs, x: Value) -> Types:
    shape = list(x.shape)
    for start, end, axis, step in _slices(attrs):
        _check_axis("slice", axis, len(shape))
        dim = shape[axis]
        extent = len(range(start, end, step))
        if isinstance(dim, BatchDim):
            # The only elements that exist for every batch size are the first `coef`.
            dim = dim.coef
        if extent and not (0 <= start < dim and 0 <= start + (extent - 1) * step < dim):
            raise ValueError(f"slice [{start}:{end}:{step}] of axis {axis} of {list(x.shape)}")
        shape[axis] = extent
    return [(x.dtype, tuple(shape))]


def _slices(attrs: Attrs) -> list[tuple[int, int, int, int]]:
    return list(zip(attrs["starts"], attrs["ends"], attrs["axes"], attrs["steps"], strict=True))


def _slice(attrs: Attrs, x: np.ndarray) -> Arrays:
    for start, end, axis, step in _slices(attrs):
        index: list[Any] = [slice(None)] * x.ndim
        if range(start, end, step):
            index[axis] = slice(start, end if end >= 0 else None, step)
        else:
            index[axis] = slice(0, 0)
        x = x[tuple(index)]
    return (x,)


def _infer_gather(attrs: Attrs, x: Value, indices: Value) -> Types:
    axis = attrs["axis"]
    _check_axis("gather", axis, len(x.shape))
    if indices.dtype.kind not in "iu":
        raise ValueError(f"gather needs integer indices, got {indices.dtype.name}")
    return [(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))]


def _gather(attrs: Attrs, x: np.ndarray, indices: np.ndarray) -> Arrays:
    return (np.take(x, indices, axis=attrs["axis"]),)


def _infer_split(attrs: Attrs, x: Value) -> Types:
    axis, sizes = attrs["axis"], attrs["sizes"]
    _check_axis("split", axis, len(x.shape))
    if any(s < 0 for s in sizes) or sum(sizes) != x.shape[axis]:
        raise ValueError(f"split of axis {axis} of {list(x.shape)} into {list(sizes)}")
    return [(x.dtype, (*x.shape[:axis], s, *x.shape[axis + 1 :])) for s in sizes]


def _split(attrs: Attrs, x: np.ndarray) -> Arrays:
    return tuple(np.split(x, np.cumsum(attrs["sizes"])[:-1], axis=attrs["axis"]))


ROWS = [
    Op("reshape", _infer_reshape, _reshape, flow.reshape, layout=True),
    Op("transpose", _infer_transpose, _transpose, flow.transpose, layout=True),
    Op("expand", _infer_expand, _expand, flow.elementwise, layout=True),
    Op("concat", _infer_concat, _concat, flow.along(lost=True), layout=True),
    Op("slice", _infer_slice, _slice, flow.slices, layout=True),
    Op("gather", _infer_gather, _gather, flow.gather, layout=True, row_operands=1, lookup="read"),
    Op("split", _infer_split, _split, flow.along(lost=True), layout=True),
]
