"""ONNX ops that find elements or write at indices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsec.compiler.frontend.folding import FOLD_LIMIT
from sparsec.compiler.frontend.importer import (
    Importer,
    OnnxNode,
    normal_axis,
    onnx_op,
)
from sparsec.compiler.frontend.onnx_ops.layout import check_indices, check_tuples, unsqueeze
from sparsec.compiler.frontend.tensor import Fail, Tensor, constant, fixed


@onnx_op("ArgMax", "ArgMin")
def _extreme_index(c: Importer, n: OnnxNode) -> Tensor:
    return c.emit(
        n.op.lower(),
        n[0],
        axis=normal_axis(n.attrs.get("axis", 0), len(n[0].shape)),
        keepdims=bool(n.attrs.get("keepdims", 1)),
        last=bool(n.attrs.get("select_last_index", 0)),
    )


@onnx_op("TopK", static=(1,))
def _topk(c: Importer, n: OnnxNode) -> Sequence[Tensor]:
    """k is an input since opset 10; where any order would do (sorted=0), it is sorted too."""
    x = n[0]
    axis = normal_axis(n.attrs.get("axis", -1), len(x.shape))
    k = c.plain_ints(n[1])[0] if n.version >= 10 else int(n.attrs["k"])
    if k > fixed(x.shape[axis]):
        raise Fail(f"the top {k} of {x.shape[axis]} elements")
    return c.emit_multi("topk", x, axis=axis, k=k, largest=bool(n.attrs.get("largest", 1)))


@onnx_op("OneHot", static=(1,))
def _one_hot(c: Importer, n: OnnxNode) -> Tensor:
    """Compare with 0, 1, .. depth - 1 along a new axis, and choose between the two values."""
    indices, values = c.cast(n[0], np.int64), n[2]
    depth = c.plain_ints(n[1])[0]
    if not 0 <= depth <= FOLD_LIMIT // 8:
        raise Fail(f"a depth of {depth}")
    rank = len(indices.shape) + 1
    axis = normal_axis(n.attrs.get("axis", -1), rank)
    wrapped = c.emit("add", indices, c.scalar(depth, indices))
    negative = c.emit("less", indices, c.scalar(0, indices))
    indices = unsqueeze(c, c.emit("where", negative, wrapped, indices), [axis])
    steps = np.arange(depth, dtype=np.int64)
    places = constant(steps.reshape([-1 if i == axis else 1 for i in range(rank)]), "depth")
    off, on = (
        c.emit("slice", values, starts=(i,), ends=(i + 1,), axes=(0,), steps=(1,)) for i in (0, 1)
    )
    return c.emit("where", c.emit("equal", indices, places), on, off)


@onnx_op("ScatterND")
def _scatter_nd(c: Importer, n: OnnxNode) -> Tensor:
    check_tuples(n[1], n[0].shape)
    return c.emit("scatter_nd", n[0], n[1], n[2], reduction=n.attrs.get("reduction", "none"))


@onnx_op("ScatterElements", "Scatter")
def _scatter_elements(c: Importer, n: OnnxNode) -> Tensor:
    axis = normal_axis(n.attrs.get("axis", 0), len(n[0].shape))
    check_indices(n[1], n[0].shape[axis], axis)
    return c.emit(
        "scatter_elements",
        *(n[0], n[1], n[2]),
        axis=axis,
        reduction=n.attrs.get("reduction", "none"),
    )
