"""ONNX Runtime's ops on quantized tensors (domain com.microsoft), taken apart again.

Each is dequantize, the float op, quantize, which is what its documentation says; the last bit of a
byte may differ from ONNX Runtime's kernels, which fold the scales together.
"""

from __future__ import annotations

import numpy as np

from sparsec.compiler.frontend.importer import Importer, OnnxNode, normal_axis, onnx_op
from sparsec.compiler.frontend.onnx_ops.quantization import integer_product, parameter
from sparsec.compiler.frontend.tensor import Fail, Tensor
from sparsec.compiler.ir import element_count

_MS = "com.microsoft"


def _zero(c: Importer, n: OnnxNode, index: int, like: Tensor) -> Tensor:
    given = n.optional(index)
    return c.scalar(0, like) if given is None else parameter(c, given)


def _wide(c: Importer, n: OnnxNode, index: int, at: int) -> Tensor:
    """Input `index` in float32, its scale and zero point being inputs `at` and `at` + 1."""
    x, scale = n[index], parameter(c, n[at])
    # Emitted even for constants, so that the dialects find the bytes.
    return c.emit("dequantize", x, scale, _zero(c, n, at + 1, x), fold=False, axis=0)


def _narrow(c: Importer, n: OnnxNode, y: Tensor, at: int, like: Tensor) -> Tensor:
    """A result in bytes, its scale and zero point being inputs `at` and `at` + 1."""
    return c.emit("quantize", y, parameter(c, n[at]), _zero(c, n, at + 1, like), axis=0)


@onnx_op("QLinearAdd", "QLinearMul", domain=_MS)
def _binary(c: Importer, n: OnnxNode) -> Tensor:
    op = {"QLinearAdd": "add", "QLinearMul": "mul"}[n.op]
    return _narrow(c, n, c.emit(op, _wide(c, n, 0, 1), _wide(c, n, 3, 4)), 6, n[0])


@onnx_op("QLinearSigmoid", "QLinearLeakyRelu", domain=_MS)
def _unary(c: Importer, n: OnnxNode) -> Tensor:
    x = _wide(c, n, 0, 1)
    if n.op == "QLinearSigmoid":
        y = c.emit("sigmoid", x)
    else:
        low = c.emit("min", x, c.scalar(0, x))
        slope = c.scalar(n.attrs.get("alpha", 0.01), x)
        y = c.emit("add", c.emit("relu", x), c.emit("mul", low, slope))
    return _narrow(c, n, y, 3, n[0])


@onnx_op("QLinearSoftmax", domain=_MS)
def _softmax(c: Importer, n: OnnxNode) -> Tensor:
    """`opset` says which Softmax: before 13, over all axes from `axis` on together."""
    x = _wide(c, n, 0, 1)
    shape, rank = x.shape, len(x.shape)
    axis = normal_axis(n.attrs.get("axis", -1), rank)
    if int(n.attrs.get("opset", 13)) < 13 and axis != rank - 1:
        x = c.reshape(x, (*shape[:axis], element_count(shape[axis:])))
    y = c.reshape(c.emit("softmax", x, axis=axis), shape)
    return _narrow(c, n, y, 3, n[0])


@onnx_op("QLinearConcat", domain=_MS)
def _concat(c: Importer, n: OnnxNode) -> Tensor:
    parts = [_wide(c, n, i, i + 1) for i in range(2, len(n.inputs), 3)]
    if not parts:
        raise Fail("it has nothing to concatenate")
    axis = normal_axis(n.attrs["axis"], len(parts[0].shape))
    # Bytes of the result's own parameters stay what they are: the dialects see to that.
    return _narrow(c, n, c.emit("concat", *parts, fold=False, axis=axis), 0, n[2])


@onnx_op("QLinearWhere", domain=_MS)
def _where(c: Importer, n: OnnxNode) -> Tensor:
    y = c.emit("where", n[0], _wide(c, n, 1, 2), _wide(c, n, 4, 5))
    return _narrow(c, n, y, 7, n[1])


@onnx_op("QGemm", domain=_MS)
def _gemm(c: Importer, n: OnnxNode) -> Tensor:
    """alpha (A - za)(B - zb) sa sb + C; C is int32 in steps of alpha sa sb; float without y."""
    a, b = n[0], n[3]
    a = c.transpose(a, (1, 0)) if n.attrs.get("transA", 0) else a
    b = c.transpose(b, (1, 0)) if n.attrs.get("transB", 0) else b
    scale = c.emit("mul", parameter(c, n[1]), parameter(c, n[4]))
    alpha = float(n.attrs.get("alpha", 1.0))
    if alpha != 1.0:
        scale = c.emit("mul", scale, c.scalar(alpha, scale))
    out = integer_product(c, a, b, n.optional(2), n.optional(5), scale, n.optional(6))
    if n.optional(7) is None:
        return out
    zero = n.optional(8)
    like = zero if zero is not None else c.scalar(0, Tensor(np.dtype(np.uint8), ()))
    return _narrow(c, n, out, 7, like)
