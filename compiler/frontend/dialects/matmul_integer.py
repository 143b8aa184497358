"""Integer products with constant weights (SparseML, ONNX Runtime's static and Q-operator forms).

    x (u8, s8) --.
                  matmul_integer -> [add i32 bias] -> cast f32 -> mul scale   =>   qlinear
    W [K, N] ----'

    qlinear -> mul constant   =>   qlinear with the product of the scales

W is u8 or s8 with any constant zero point (absent, scalar or [N]); scale is a constant scalar or
[N].  Operands come in either order.  A float bias stays an ``add``.  Products of two activations
stay as they are.

W minus its zero point may need nine bits, as with ONNX Runtime's uint8 weights.  Then it is a sum
of int8 matrices, of which the second holds the few weights that are out of range (and a third those
of 255), and so is the layer:

    qlinear(x, W)   =>   (linear_integer(x, W1) + linear_integer(x, W2) + shift) * scale
"""

from __future__ import annotations

import numpy as np

from sparsec.compiler.editor import Match
from sparsec.compiler.ir import Node

_FLOAT32 = np.dtype(np.float32)


def per_channel(array: np.ndarray | None, n: int, rank: int) -> np.ndarray | None:
    """A constant as [] or [N], if it varies along the last axis of `rank` only; else None."""
    if array is None or array.ndim > rank:
        return None
    if array.size == 1:
        return array.reshape(())
    return array.reshape(n) if array.shape == (*(1,) * (array.ndim - 1), n) else None


def constant_operand(m: Match, node: Node) -> tuple[str, np.ndarray] | None:
    """The other operand and the array of a two-operand node with one constant operand."""
    for mine, other in ((0, 1), (1, 0)):
        array = m.constant(node.inputs[mine])
        if array is not None and m.constant(node.inputs[other]) is None:
            return node.inputs[other], array
    return None


def weights(w: np.ndarray | None, zero: np.ndarray | None, rank: int) -> np.ndarray | None:
    """W [K, N] (or [1.., K, N]) less its zero point as int16 [N, K]; None where that cannot be.

    Args:
        zero: [] or [N], or None for 0.
        rank: of the activation; the weights may not have more extents.
    """
    if w is None or w.ndim < 2 or w.ndim > rank or any(d != 1 for d in w.shape[:-2]):
        return None
    wide = w.reshape(w.shape[-2:]).astype(np.int16)
    if zero is not None:
        point = per_channel(zero, w.shape[-1], 1)
        if point is None:
            return None
        wide = wide - point.astype(np.int16)
    return np.ascontiguousarray(wide.T) if wide.size else None


def integer_sums(m: Match, x: str, wide: np.ndarray, hint: str, source: str) -> str:
    """int32 [..., N]: x times int16 weights [N, K] of nine bits, as a sum of layers.

    One or two; three where a weight is 255 = 127 + 127 + 1.
    """
    total = ""
    while not total or wide.any():
        part = np.clip(wide, -128, 127)
        wide = wide - part
        weight = m.edit.constant(part.astype(np.int8), f"{hint}.rest" if total else hint)
        product = m.edit.emit("linear_integer", (x, weight), source=source)
        total = m.edit.emit("add", (total, product), source=source) if total else product
    return total


def quantized_layer(
    m: Match,
    x: str,
    wide: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray | None,
    x_zp: int,
    hint: str,
    source: str,
) -> str:
    """qlinear of int16 weights [N, K], or what stands for it where they need nine bits.

    Args:
        scale: [] or [N].
        bias: int32 [N].
    """
    factor = m.edit.constant(scale.astype(np.float32), "scale")
    if wide.min() >= -128 and wide.max() <= 127:
        operands = [x, m.edit.constant(wide.astype(np.int8), hint), factor]
        if bias is not None:
            operands.append(m.edit.constant(bias, "bias"))
        return m.edit.emit("qlinear", operands, source=source, x_zp=x_zp)
    shift = -x_zp * wide.sum(axis=1, dtype=np.int32)
    shift = shift if bias is None else shift + bias
    total = integer_sums(m, x, wide, hint, source)
    total = m.edit.emit("add", (total, m.edit.constant(shift, "bias")), source=source)
    wide_total = m.edit.emit("cast", (total,), source=source, to=_FLOAT32)
    return m.edit.emit("mul", (wide_total, factor), source=source)


def to_qlinear(m: Match, node: Node) -> bool:
    """mul(cast([add](matmul_integer))) => qlinear."""
    if node.op != "mul" or m.type(node.output).dtype != _FLOAT32:
        return False
    scaled = constant_operand(m, node)
    cast = m.producer(scaled[0], "cast") if scaled else None
    product, bias = _product_below(m, cast.inputs[0]) if cast else (None, None)
    if scaled is None or product is None:
        return False
    x, b, za, zb = (*product.inputs, "", "")[:4]
    x_zp = m.scalar(za) if za else 0.0
    if x_zp is None or (zb and m.constant(zb) is None) or m.constant(x) is not None:
        return False
    w = weights(m.constant(b), m.constant(zb) if zb else None, len(m.type(x).shape))
    if w is None:
        return False
    rank = len(m.type(product.output).shape)
    scale = per_channel(scaled[1], w.shape[0], rank)
    row = None if bias is None else per_channel(bias, w.shape[0], rank)
    if scale is None or (bias is not None and (row is None or row.dtype != np.int32)):
        return False
    full = None if row is None else np.broadcast_to(row, (w.shape[0],)).copy()
    out = quantized_layer(m, x, w, scale, full, int(x_zp), b, product.source)
    m.edit.replace_uses(node.output, out)
    return True


def _product_below(m: Match, name: str) -> tuple[Node | None, np.ndarray | None]:
    """The matmul_integer behind a value, and the constant that is added to it, if one is."""
    product = m.producer(name, "matmul_integer")
    added = m.producer(name, "add") if product is None else None
    sides = constant_operand(m, added) if added else None
    if sides is None:
        return product, None
    return m.producer(sides[0], "matmul_integer"), sides[1]


def merge_scale(m: Match, node: Node) -> bool:
    """mul(qlinear, constant) => qlinear with the product of the scales."""
    if node.op != "mul":
        return False
    sides = constant_operand(m, node)
    layer = m.producer(sides[0], "qlinear") if sides else None
    if sides is None or layer is None or m.only_user(layer.output) is None:
        return False
    w, scale = m.constant(layer.inputs[1]), m.constant(layer.inputs[2])
    if w is None or scale is None:
        return False
    factor = per_channel(sides[1], len(w), len(m.type(layer.output).shape))
    if factor is None:
        return False
    merged = m.edit.constant((scale * factor).astype(np.float32), "scale")
    operands = (*layer.inputs[:2], merged, *layer.inputs[3:])
    out = m.edit.emit("qlinear", operands, source=layer.source, **layer.attrs)
    m.edit.replace_uses(node.output, out)
    return True


RULES = [to_qlinear, merge_scale]
