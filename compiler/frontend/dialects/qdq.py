"""QDQ: float ops between dequantize and quantize.

First, dequantize moves behind the ops that move elements, and pairs that undo each other go:

    dequantize -> reshape, transpose, slice, gather     =>   the same on 8 bits -> dequantize
    quantize(s, z) <- dequantize(s, z) <- q             =>   q
    quantize <- dequantize <- constant                  =>   constant

(so a quantized embedding table is gathered as bytes, and weights are dequantized in their final
layout), then linear layers:

    dequantize(x, sx, zx) --.
                             matmul       =>   qlinear(x, W - zw, scale = sx * sw) {x_zp = zx}
    dequantize(W, sw, zw) --'

    add(qlinear, dequantize(bias i32, s = sx * sw, 0))   =>   qlinear with that bias

Any other bias stays a float ``add``; a ``dequantize`` of its constant folds to the float it means.
"""

from __future__ import annotations

import numpy as np

from sparsec.compiler.editor import Match
from sparsec.compiler.frontend.dialects.matmul_integer import (
    per_channel,
    quantized_layer,
    weights,
)
from sparsec.compiler.interpreter import compute
from sparsec.compiler.ir import Node

_MOVES = ("reshape", "transpose", "slice", "gather")
_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))


def _per_tensor(m: Match, node: Node) -> bool:
    return all(m.type(name).shape in ((), (1,)) for name in node.inputs[1:])


def _axis_after(m: Match, move: Node, axis: int) -> int | None:
    """Where the channel axis of a dequantize goes, or None if the move breaks it up."""
    before = m.type(move.inputs[0]).shape
    after = m.type(move.output).shape
    if move.op == "transpose":
        return int(list(move.attrs["perm"]).index(axis))
    if move.op == "slice":
        return None if axis in move.attrs["axes"] else axis
    if move.op == "reshape":
        # Only extents of 1 may come and go in front of the channels.
        for new, extent in enumerate(after):
            same = extent == before[axis] and after[new + 1 :] == before[axis + 1 :]
            if same and _count(after[:new]) == _count(before[:axis]):
                return new
    return None


def _count(shape: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(d for d in shape if d != 1)


def dequantize_after_move(m: Match, node: Node) -> bool:
    """move(dequantize(q)) => dequantize(move(q))."""
    if node.op not in _MOVES:
        return False
    inner = m.producer(node.inputs[0], "dequantize")
    if inner is None or m.type(inner.inputs[0]).dtype not in _BYTES:
        return False
    axis: int | None = 0
    if not _per_tensor(m, inner):
        axis = _axis_after(m, node, inner.attrs["axis"])
    if axis is None:
        return False
    inputs = (inner.inputs[0], *node.inputs[1:])
    moved = m.edit.emit(node.op, inputs, source=node.source, **node.attrs)
    out = m.edit.emit("dequantize", (moved, *inner.inputs[1:]), source=inner.source, axis=axis)
    m.edit.replace_uses(node.output, out)
    return True


def _same(m: Match, a: str, b: str) -> bool:
    if a == b:
        return True
    left, right = m.constant(a), m.constant(b)
    if left is None or right is None or left.dtype != right.dtype or left.size != right.size:
        return False
    return bool(np.array_equal(left.reshape(-1), right.reshape(-1)))


def requantize_same(m: Match, node: Node) -> bool:
    """quantize(dequantize(q, s, z), s, z) => q."""
    if node.op != "quantize":
        return False
    inner = m.producer(node.inputs[0], "dequantize")
    if inner is None or not _per_tensor(m, inner) or not _per_tensor(m, node):
        return False
    if not all(_same(m, a, b) for a, b in zip(inner.inputs[1:], node.inputs[1:], strict=True)):
        return False
    m.edit.replace_uses(node.output, inner.inputs[0])
    return True


def move_of_constant(m: Match, node: Node) -> bool:
    """Moves of constants happen now, so that weights reach their layer in their final layout."""
    from sparsec.compiler.frontend.dialects.fold import fold_constant

    return node.op in _MOVES and fold_constant(m, node)


def requantize_constant(m: Match, node: Node) -> bool:
    """quantize(dequantize(constant)) => constant: a weight that a quantizer took for an activation.

    ONNX Runtime's does so where layers share it.
    """
    inner = m.producer(node.inputs[0], "dequantize") if node.op == "quantize" else None
    if inner is None:
        return False
    arrays = [m.constant(name) for name in (*inner.inputs, *node.inputs[1:])]
    if any(a is None for a in arrays):
        return False
    (wide,) = compute(inner, arrays[:3])
    (narrow,) = compute(node, [wide, *arrays[3:]])
    m.edit.replace_uses(node.output, m.edit.constant(narrow, inner.inputs[0]))
    return True


def to_qlinear(m: Match, node: Node) -> bool:
    """matmul(dequantize(x), dequantize(W)) => qlinear."""
    if node.op != "matmul":
        return False
    left = m.producer(node.inputs[0], "dequantize")
    right = m.producer(node.inputs[1], "dequantize")
    if left is None or right is None or not _per_tensor(m, left):
        return False
    x = m.type(left.inputs[0])
    sx, zx = m.scalar(left.inputs[1]), m.scalar(left.inputs[2])
    w, sw, zw = (m.constant(name) for name in right.inputs)
    if x.dtype not in _BYTES or m.constant(x.name) is not None or sx is None or zx is None:
        return False
    if w is None or sw is None or zw is None or w.dtype not in _BYTES:
        return False
    if max(sw.size, zw.size) > 1 and right.attrs["axis"] != w.ndim - 1:
        return False
    rows = weights(w, zw, len(x.shape))
    if rows is None:
        return False
    scale = per_channel(np.float32(sx) * sw, rows.shape[0], 1)
    if scale is None:
        return False
    hint = right.inputs[0]
    out = quantized_layer(m, left.inputs[0], rows, scale, None, int(zx), hint, node.source)
    m.edit.replace_uses(node.output, out)
    return True


def integer_bias(m: Match, node: Node) -> bool:
    """add(qlinear, dequantize(int32 constant)) of equal scales => qlinear with a bias.

    What is added in float is then added exactly, before the one rounding of the scale.
    """
    if node.op != "add":
        return False
    for mine, other in ((0, 1), (1, 0)):
        layer = m.producer(node.inputs[mine], "qlinear")
        value = m.producer(node.inputs[other], "dequantize")
        if layer is None or value is None or len(layer.inputs) > 3:
            continue
        scale = m.constant(layer.inputs[2])
        bias, bias_scale, zero = (m.constant(name) for name in value.inputs)
        if scale is None or bias is None or bias_scale is None or zero is None:
            continue
        n = m.type(layer.inputs[1]).shape[0]
        fits = bias.dtype == np.int32 and bias.size == n and bias.shape[-1:] == (n,)
        if not fits or np.any(zero) or bias_scale.size not in (1, n):
            continue
        if (
            m.only_user(layer.output) is None
            or m.type(node.output).shape != m.type(layer.output).shape
        ):
            continue
        # Room for the products, so that the sum cannot overflow where the float sum would not.
        if np.any(scale != bias_scale) or np.any(np.abs(bias.astype(np.int64)) >= 2**30):
            continue
        operands = (*layer.inputs[:3], m.edit.constant(bias.reshape(-1), value.inputs[0]))
        out = m.edit.emit("qlinear", operands, source=layer.source, **layer.attrs)
        m.edit.replace_uses(node.output, out)
        return True
    return False


MOVE = [move_of_constant, dequantize_after_move, requantize_same, requantize_constant]
RULES = [to_qlinear, integer_bias]
