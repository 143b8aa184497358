"""Ops whose indices are data: picking, scattering, and finding elements.

``axis`` is not negative.  Indices count from either end, as in ONNX; for one outside of its axis
the references raise IndexError, and compiled code returns SPARSEC_BAD_INDEX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.compiler.ir import BatchDim, Shape, Value
from sparsec.compiler.ops import flow
from sparsec.compiler.ops.row import Op

Attrs = Mapping[str, Any]
Types = list[tuple[Any, Shape]]
Arrays = tuple[np.ndarray, ...]

REDUCTIONS = ("none", "add", "mul", "min", "max")


def _check_axis(op: str, attrs: Attrs, x: Value) -> int:
    axis = int(attrs["axis"])
    if not 0 <= axis < len(x.shape):
        raise ValueError(f"{op} on axis {axis} of a tensor of rank {len(x.shape)}")
    return axis


def _check_indices(op: str, indices: Value) -> None:
    if indices.dtype.kind not in "iu":
        raise ValueError(f"{op} needs integer indices, got {indices.dtype.name}")


def _check_covered(op: str, axis: int, x: Value, indices: Value) -> None:
    """Indices lie over x: no extent but the axis' is larger than x's."""
    _check_indices(op, indices)
    inside = len(indices.shape) == len(x.shape) and all(
        i == axis or d == own or (isinstance(d, int) and isinstance(own, int) and d <= own)
        for i, (d, own) in enumerate(zip(indices.shape, x.shape, strict=True))
    )
    if not inside:
        raise ValueError(f"{op} of {x} with indices {indices} along axis {axis}")


def _inside(indices: np.ndarray, extent: int) -> np.ndarray:
    """Indices counted from the start; IndexError for one that is outside."""
    indices = indices.astype(np.int64)
    wrong = indices[(indices < -extent) | (indices >= extent)]
    if wrong.size:
        raise IndexError(f"index {wrong.flat[0]} is outside the {extent} elements of its axis")
    return np.where(indices < 0, indices + extent, indices)


def _along(indices: np.ndarray, axis: int, extent: int) -> tuple[np.ndarray, ...]:
    """Coordinates of the elements that indices over a tensor name, along one axis."""
    where: list[np.ndarray] = list(np.indices(indices.shape, sparse=True))
    where[axis] = _inside(indices, extent)
    return tuple(where)


def _infer_gather_elements(attrs: Attrs, x: Value, indices: Value) -> Types:
    axis = _check_axis("gather_elements", attrs, x)
    _check_covered("gather_elements", axis, x, indices)
    return [(x.dtype, indices.shape)]


def _gather_elements(attrs: Attrs, x: np.ndarray, indices: np.ndarray) -> Arrays:
    axis = int(attrs["axis"])
    return (np.asarray(x[_along(indices, axis, x.shape[axis])]),)


def _infer_gather_nd(attrs: Attrs, x: Value, indices: Value) -> Types:
    shared = int(attrs["batch_dims"])
    _check_indices("gather_nd", indices)
    if not indices.shape or not isinstance(indices.shape[-1], int):
        raise ValueError(f"gather_nd with indices {indices}")
    depth = indices.shape[-1]
    if not 0 <= shared < len(indices.shape) or shared + depth > len(x.shape):
        raise ValueError(f"gather_nd of {x} with indices {indices} and {shared} batch extents")
    if x.shape[:shared] != indices.shape[:shared]:
        raise ValueError(f"gather_nd of {x} with indices {indices}: batch extents differ")
    return [(x.dtype, (*indices.shape[:-1], *x.shape[shared + depth :]))]


def _gather_nd(attrs: Attrs, x: np.ndarray, indices: np.ndarray) -> Arrays:
    shared, depth = int(attrs["batch_dims"]), indices.shape[-1]
    own: tuple[np.ndarray, ...] = np.indices(x.shape[:shared], sparse=True)
    spread = (1,) * (indices.ndim - 1 - shared)
    where = [axis.reshape(*axis.shape, *spread) for axis in own]
    where += [_inside(indices[..., i], x.shape[shared + i]) for i in range(depth)]
    tail = x.shape[shared + depth :]
    return (np.broadcast_to(x[tuple(where)], (*indices.shape[:-1], *tail)),)


def _check_reduction(op: str, attrs: Attrs, x: Value, updates: Value) -> None:
    how = attrs["reduction"]
    if how not in REDUCTIONS:
        raise ValueError(f"{op} with the reduction {how!r}")
    if updates.dtype != x.dtype or (how != "none" and x.dtype.kind == "b"):
        raise ValueError(f"{op} of {updates.dtype} into {x.dtype} with the reduction {how!r}")


def _infer_scatter_nd(attrs: Attrs, x: Value, indices: Value, updates: Value) -> Types:
    _check_indices("scatter_nd", indices)
    _check_reduction("scatter_nd", attrs, x, updates)
    if not indices.shape or not isinstance(indices.shape[-1], int):
        raise ValueError(f"scatter_nd with indices {indices}")
    depth = indices.shape[-1]
    if depth > len(x.shape) or updates.shape != (*indices.shape[:-1], *x.shape[depth:]):
        raise ValueError(f"scatter_nd of {updates} into {x} at {indices}")
    return [(x.dtype, x.shape)]


def _scatter(out: np.ndarray, where: tuple[Any, ...], updates: np.ndarray, how: str) -> None:
    if how == "none":
        out[where] = updates
        return
    ufunc = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}[how]
    with np.errstate(all="ignore"):
        ufunc.at(out, where, updates)


def _scatter_nd(attrs: Attrs, x: np.ndarray, indices: np.ndarray, updates: np.ndarray) -> Arrays:
    out = np.array(x)
    where = [_inside(indices[..., i], x.shape[i]) for i in range(indices.shape[-1])]
    # An extent of 1 in front, so that tuples of no indices name all of x.
    first = np.zeros(indices.shape[:-1], np.int64)
    _scatter(out[None], (first, *where), updates, attrs["reduction"])
    return (out,)


def _infer_scatter_elements(attrs: Attrs, x: Value, indices: Value, updates: Value) -> Types:
    axis = _check_axis("scatter_elements", attrs, x)
    _check_covered("scatter_elements", axis, x, indices)
    _check_reduction("scatter_elements", attrs, x, updates)
    if updates.shape != indices.shape:
        raise ValueError(f"scatter_elements of {updates} at {indices}")
    return [(x.dtype, x.shape)]


def _scatter_elements(
    attrs: Attrs, x: np.ndarray, indices: np.ndarray, updates: np.ndarray
) -> Arrays:
    out = np.array(x)
    axis = int(attrs["axis"])
    _scatter(out, _along(indices, axis, x.shape[axis]), updates, attrs["reduction"])
    return (out,)


def _infer_extreme_index(attrs: Attrs, x: Value) -> Types:
    axis = _check_axis("argmax", attrs, x)
    if x.dtype.kind not in "iuf":
        raise ValueError(f"the extreme of {x.dtype.name}")
    if x.shape[axis] == 0:
        raise ValueError(f"the extreme of no elements: axis {axis} of {list(x.shape)}")
    kept = (1,) if attrs["keepdims"] else ()
    return [(np.int64, (*x.shape[:axis], *kept, *x.shape[axis + 1 :]))]


def _extreme_index(attrs: Attrs, x: np.ndarray, find: Any) -> Arrays:
    axis = int(attrs["axis"])
    last = bool(attrs["last"])
    out = find(np.flip(x, axis) if last else x, axis=axis)
    out = x.shape[axis] - 1 - out if last else out
    return (np.expand_dims(out, axis) if attrs["keepdims"] else np.asarray(out),)


def _argmax(attrs: Attrs, x: np.ndarray) -> Arrays:
    return _extreme_index(attrs, x, np.argmax)


def _argmin(attrs: Attrs, x: np.ndarray) -> Arrays:
    return _extreme_index(attrs, x, np.argmin)


def _infer_topk(attrs: Attrs, x: Value) -> Types:
    axis, k = _check_axis("topk", attrs, x), int(attrs["k"])
    extent = x.shape[axis]
    if x.dtype.kind not in "iuf":
        raise ValueError(f"topk of {x.dtype.name}")
    if isinstance(extent, BatchDim) or not 0 <= k <= extent:
        raise ValueError(f"the top {k} along axis {axis} of {list(x.shape)}")
    shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
    return [(x.dtype, shape), (np.int64, shape)]


def _topk(attrs: Attrs, x: np.ndarray) -> Arrays:
    """Sorted; of equal elements the first one comes first; NaN is larger than any number."""
    axis, k = int(attrs["axis"]), int(attrs["k"])
    if attrs["largest"]:
        # A stable sort from the end, read backwards, keeps equal elements in their order.
        order = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
        order = x.shape[axis] - 1 - np.flip(order, axis)
    else:
        order = np.argsort(x, axis=axis, kind="stable")
    order = np.take(order, np.arange(k), axis=axis)
    return (np.take_along_axis(x, order, axis), order.astype(np.int64))


ROWS = [
    Op(
        "gather_elements",
        _infer_gather_elements,
        _gather_elements,
        flow.gather_elements,
        lookup="read",
    ),
    Op("gather_nd", _infer_gather_nd, _gather_nd, flow.gather_nd, lookup="read"),
    Op(
        "scatter_elements",
        _infer_scatter_elements,
        _scatter_elements,
        flow.scatter_elements,
        lookup="write",
    ),
    Op("scatter_nd", _infer_scatter_nd, _scatter_nd, flow.scatter_nd, lookup="write"),
    Op("argmax", _infer_extreme_index, _argmax, flow.reduced),
    Op("argmin", _infer_extreme_index, _argmin, flow.reduced),
    Op("topk", _infer_topk, _topk, flow.along(lost=True)),
]
