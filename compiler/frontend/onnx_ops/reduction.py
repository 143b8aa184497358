"""ONNX reductions, softmax and cumulative sums."""

from __future__ import annotations

import numpy as np

from sparsec.compiler.frontend.importer import Importer, OnnxNode, normal_axis, onnx_op
from sparsec.compiler.frontend.onnx_ops.layout import axes_of
from sparsec.compiler.frontend.tensor import Fail, Tensor, constant
from sparsec.compiler.ir import element_count

_REDUCE = {
    "ReduceSum": "reduce_sum",
    "ReduceMean": "reduce_mean",
    "ReduceMax": "reduce_max",
    "ReduceMin": "reduce_min",
    "ReduceL1": "reduce_sum",
    "ReduceL2": "reduce_sum",
    "ReduceSumSquare": "reduce_sum",
    "ReduceLogSum": "reduce_sum",
    "ReduceProd": "reduce_prod",
}


@onnx_op(*_REDUCE, static=(1,))
def _reduce(c: Importer, n: OnnxNode) -> Tensor:
    """Axes are an input since opset 13 (sum) or 18 (the others); none means all axes."""
    x = n[0]
    axes, keepdims = _reduced_axes(c, n)
    if n.op == "ReduceProd" and x.symbolic:
        return _product(x, axes, keepdims)
    if n.op in ("ReduceL2", "ReduceSumSquare"):
        x = c.emit("mul", x, x)
    if n.op == "ReduceL1":
        x = c.emit("abs", x)
    was_bool = x.dtype == np.bool_
    if was_bool:
        x = c.cast(x, np.uint8)
    out = c.emit(_REDUCE[n.op], x, axes=axes, keepdims=keepdims) if axes else x
    if n.op in ("ReduceL2", "ReduceLogSum"):
        out = c.emit("sqrt" if n.op == "ReduceL2" else "log", out)
    return c.cast(out, np.bool_) if was_bool else out


def _reduced_axes(c: Importer, n: OnnxNode) -> tuple[tuple[int, ...], bool]:
    rank = len(n[0].shape)
    given = axes_of(c, n, 1, 13 if n.op == "ReduceSum" else 18)
    if not given:
        given = [] if n.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    axes = tuple(sorted(normal_axis(a, rank) for a in given))
    return axes, bool(n.attrs.get("keepdims", 1))


@onnx_op("ReduceLogSumExp", static=(1,))
def _log_sum_exp(c: Importer, n: OnnxNode) -> Tensor:
    """max + log(sum(exp(x - max))), where the maximum is finite."""
    x = n[0]
    axes, keepdims = _reduced_axes(c, n)
    top = c.emit("reduce_max", x, axes=axes, keepdims=True)
    infinite = c.emit("equal", c.emit("abs", top), c.scalar(np.inf, x))
    top = c.emit("where", infinite, c.scalar(0, x), top)
    total = c.emit("reduce_sum", c.emit("exp", c.emit("sub", x, top)), axes=axes, keepdims=True)
    out = c.emit("add", c.emit("log", total), top)
    return out if keepdims else c.reshape(out, [d for i, d in enumerate(x.shape) if i not in axes])


def _product(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """Of extents, some of which are the batch."""
    if len(axes) != 1 or len(x.shape) != 1:
        raise Fail("a product of numbers that depend on the batch size")
    count = element_count(tuple(x.contents().tolist()))
    return constant(np.asarray([count] if keepdims else count, object), "product", x.dtype)


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


@onnx_op("CumSum", static=(1,))
def _cumsum(c: Importer, n: OnnxNode) -> Tensor:
    return c.emit(
        "cumsum",
        n[0],
        axis=normal_axis(c.plain_ints(n[1])[0], len(n[0].shape)),
        exclusive=int(n.attrs.get("exclusive", 0)),
        reverse=int(n.attrs.get("reverse", 0)),
    )
