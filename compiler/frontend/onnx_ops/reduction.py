"""ONNX reductions, softmax and cumulative sums."""

from __future__ import annotations

import numpy as np

from sparsec.compiler.frontend.importer import Importer, OnnxNode, normal_axis, onnx_op
from sparsec.compiler.frontend.onnx_ops.layout import axes_of
from sparsec.compiler.frontend.tensor import Fail, Tensor, constant, dense
from sparsec.compiler.ir import element_count

_REDUCE = {
    "ReduceSum": "reduce_sum",
    "ReduceMean": "reduce_mean",
    "ReduceMax": "reduce_max",
    "ReduceMin": "reduce_min",
    "ReduceL1": "reduce_sum",
    "ReduceL2": "reduce_sum",
    "ReduceSumSquare": "reduce_sum",
    "ReduceProd": "",
}


@onnx_op(*_REDUCE)
def _reduce(c: Importer, n: OnnxNode) -> Tensor:
    """Axes are an input since opset 13 (sum) or 18 (the others); none means all axes."""
    x = n[0]
    given = axes_of(c, n, 1, 13 if n.op == "ReduceSum" else 18)
    if not given:
        given = [] if n.attrs.get("noop_with_empty_axes", 0) else list(range(len(x.shape)))
    axes = tuple(sorted(normal_axis(a, len(x.shape)) for a in given))
    keepdims = bool(n.attrs.get("keepdims", 1))
    if n.op == "ReduceProd":
        return _product(x, axes, keepdims)
    if n.op in ("ReduceL2", "ReduceSumSquare"):
        x = c.emit("mul", x, x)
    if n.op == "ReduceL1":
        x = c.emit("abs", x)
    was_bool = x.dtype == np.bool_
    if was_bool:
        x = c.cast(x, np.int32)
    out = c.emit(_REDUCE[n.op], x, axes=axes, keepdims=keepdims) if axes else x
    if n.op == "ReduceL2":
        out = c.emit("sqrt", out)
    return c.cast(out, np.bool_) if was_bool else out


def _product(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """Products are of shapes; at run time there is no such op."""
    if x.symbolic and len(axes) == 1 and len(x.shape) == 1:
        count = element_count(tuple(x.contents().tolist()))
        return constant(np.asarray([count] if keepdims else count, object), "product", x.dtype)
    if x.symbolic:
        raise Fail("a product of numbers that depend on the batch size")
    return constant(np.prod(dense(x, 2**28), axis=axes, keepdims=keepdims, dtype=x.dtype))


@onnx_op("Softmax", "LogSoftmax")
def _softmax(c: Importer, n: OnnxNode) -> Tensor:
    """Before opset 13 all axes from `axis` on are taken together."""
    x = n[0]
    rank = len(x.shape)
    axis = normal_axis(n.attrs.get("axis", -1 if n.version >= 13 else 1), rank)
    shape = x.shape
    if n.version < 13 and axis != rank - 1:
        x = c.reshape(x, (*shape[:axis], element_count(shape[axis:])))
    if n.op == "Softmax":
        return c.reshape(c.emit("softmax", x, axis=axis), shape)
    centred = c.emit("sub", x, c.emit("reduce_max", x, axes=(axis,), keepdims=True))
    total = c.emit("reduce_sum", c.emit("exp", centred), axes=(axis,), keepdims=True)
    return c.reshape(c.emit("sub", centred, c.emit("log", total)), shape)


@onnx_op("CumSum")
def _cumsum(c: Importer, n: OnnxNode) -> Tensor:
    return c.emit(
        "cumsum",
        n[0],
        axis=normal_axis(c.plain_ints(n[1])[0], len(n[0].shape)),
        exclusive=int(n.attrs.get("exclusive", 0)),
        reverse=int(n.attrs.get("reverse", 0)),
    )
