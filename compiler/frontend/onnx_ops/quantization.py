"""ONNX quantization ops.

``dequantize`` of a constant is emitted, not folded: the dialects look for it.  They fold what they
leave.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from sparsec.compiler.frontend.importer import Importer, OnnxNode, core_dtype, normal_axis, onnx_op
from sparsec.compiler.frontend.tensor import Fail, Tensor, fixed

_SHORT = tuple(np.dtype(t) for t in (np.uint8, np.int8, np.uint16, np.int16))


def parameter(c: Importer, tensor: Tensor) -> Tensor:
    """A scale or zero point; one of a single element becomes a scalar."""
    if tensor.array is not None and not np.isfinite(tensor.array).all():
        raise Fail("its scale is infinite or not a number: the model is damaged")
    return c.reshape(tensor, ()) if tensor.shape == (1,) else tensor


def _axis(n: OnnxNode, x: Tensor, scale: Tensor) -> int:
    return normal_axis(n.attrs.get("axis", 1), len(x.shape)) if scale.shape else 0


def _blocked(n: OnnxNode, scale: Tensor) -> bool:
    return bool(n.attrs.get("block_size", 0)) or len(scale.shape) > 1


def _spread(c: Importer, n: OnnxNode, p: Tensor, x: Tensor) -> Tensor:
    """A parameter per block of elements along an axis, repeated for each of them."""
    axis, size = _axis(n, x, p), int(n.attrs.get("block_size", 0))
    extent = fixed(x.shape[axis])
    rest = [d for i, d in enumerate(x.shape) if i != axis]
    if len(p.shape) != len(x.shape) or size < 1 or p.shape[axis] != -(-extent // size):
        raise Fail(f"blocks of {size} along axis {axis} with parameters of {list(p.shape)}")
    if [d for i, d in enumerate(p.shape) if i != axis] != rest:
        raise Fail(f"parameters of {list(p.shape)} for {list(x.shape)}")
    count = fixed(p.shape[axis])
    front, back = p.shape[:axis], p.shape[axis + 1 :]
    p = c.expand(c.reshape(p, (*front, count, 1, *back)), (*front, count, size, *back))
    p = c.reshape(p, (*front, count * size, *back))
    if count * size == extent:
        return p
    return c.emit("slice", p, starts=(0,), ends=(extent,), axes=(axis,), steps=(1,))


def _zero(n: OnnxNode, index: int, dtype: np.dtype[Any], scale: Tensor) -> Tensor:
    given = n.optional(index)
    if given is None:
        return Tensor(dtype, scale.shape, array=np.zeros((1,) * len(scale.shape), dtype))
    return given


@onnx_op("QuantizeLinear")
@onnx_op("QuantizeLinear", domain="com.microsoft")
def _quantize(c: Importer, n: OnnxNode) -> Tensor:
    """The result's type is the zero point's, else `output_dtype`, else uint8."""
    x, scale = c.cast(n[0], np.float32), parameter(c, c.cast(n[1], np.float32))
    wanted = n.attrs.get("output_dtype", 0) or onnx.TensorProto.UINT8
    zero = parameter(c, _zero(n, 2, core_dtype(wanted), scale))
    if zero.dtype not in _SHORT:
        raise Fail(f"quantization to {zero.dtype.name} is not supported")
    if _blocked(n, scale):
        scale, zero = _spread(c, n, scale, x), _spread(c, n, zero, x)
        shifted = c.emit("round", c.emit("div", x, scale))
        shifted = c.emit("add", shifted, c.cast(zero, np.float32))
        limits = np.iinfo(zero.dtype)
        shifted = c.emit("max", shifted, c.scalar(limits.min, shifted))
        return c.cast(c.emit("min", shifted, c.scalar(limits.max, shifted)), zero.dtype)
    return c.emit("quantize", x, scale, zero, axis=_axis(n, x, scale))


@onnx_op("DequantizeLinear")
@onnx_op("DequantizeLinear", domain="com.microsoft")
def _dequantize(c: Importer, n: OnnxNode) -> Tensor:
    x, scale = n[0], parameter(c, c.cast(n[1], np.float32))
    zero = parameter(c, _zero(n, 2, x.dtype, scale))
    if x.dtype not in (*_SHORT, np.dtype(np.int32)):
        raise Fail(f"quantized values of type {x.dtype.name} are not supported")
    if _blocked(n, scale):
        scale, zero = _spread(c, n, scale, x), _spread(c, n, zero, x)
        whole = c.emit("sub", c.cast(x, np.int64), c.cast(zero, np.int64))
        return c.emit("mul", c.cast(whole, np.float32), scale)
    return c.emit("dequantize", x, scale, zero, fold=False, axis=_axis(n, x, scale))


@onnx_op("DynamicQuantizeLinear")
def _dynamic_quantize(c: Importer, n: OnnxNode) -> list[Tensor]:
    return list(dynamic_quantize(c, n[0]))


def dynamic_quantize(c: Importer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Range of x including 0 -> scale and zero point (both at run time) -> quantize to uint8.

    Where all of x is 0 the scale is 1, as in ONNX Runtime and in ONNX's reference.
    """
    zero = c.scalar(0, x)
    high = c.emit("max", _extreme(c, "reduce_max", x), zero)
    low = c.emit("min", _extreme(c, "reduce_min", x), zero)
    span = c.emit("div", c.emit("sub", high, low), c.scalar(255, x))
    scale = c.emit("where", c.emit("equal", high, low), c.scalar(1, x), span)
    point = c.emit("round", c.emit("div", c.emit("sub", zero, low), scale))
    point = c.emit("min", c.emit("max", point, zero), c.scalar(255, x))
    point = c.cast(point, np.uint8)
    return c.emit("quantize", x, scale, point, axis=0), scale, point


def _extreme(c: Importer, op: str, x: Tensor) -> Tensor:
    """The extreme of all elements, first of each row, so that rows can be shared out."""
    rank = len(x.shape)
    if rank > 1:
        x = c.emit(op, x, axes=(rank - 1,), keepdims=False)
    return c.emit(op, x, axes=tuple(range(len(x.shape))), keepdims=False) if rank else x


@onnx_op("MatMulInteger")
def _matmul_integer(c: Importer, n: OnnxNode) -> Tensor:
    zeros = [n.optional(2), n.optional(3)]
    return c.emit("matmul_integer", n[0], n[1], *(parameter(c, z) if z else None for z in zeros))


def integer_product(
    c: Importer,
    a: Tensor,
    b: Tensor,
    za: Tensor | None,
    zb: Tensor | None,
    scale: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """matmul_integer -> add an int32 bias -> cast -> mul by a scale ([] or [N]); float32."""
    za = parameter(c, za) if za else None
    zb = parameter(c, zb) if zb else None
    total = c.emit("matmul_integer", a, b, za, zb)
    if bias is not None:
        total = c.emit("add", total, bias)
    return c.emit("mul", c.cast(total, np.float32), scale)


@onnx_op("QLinearMatMul")
@onnx_op("QLinearMatMul", domain="com.microsoft")
def _qlinear_matmul(c: Importer, n: OnnxNode) -> Tensor:
    """matmul_integer -> cast -> mul(a_scale * b_scale) -> quantize."""
    a, sa, za, b, sb, zb = (n[i] for i in range(6))
    sy, zy = n[6], n[7]
    scale = c.emit("mul", parameter(c, sa), parameter(c, sb))
    if len(scale.shape) > 1 or len(sy.shape) > 1 or (sy.shape and sy.shape != (1,)):
        raise Fail(f"scales of shapes {list(scale.shape)} and {list(sy.shape)}")
    out = integer_product(c, a, b, za, zb, scale)
    return c.emit("quantize", out, parameter(c, sy), parameter(c, zy), axis=0)


@onnx_op("DynamicQuantizeMatMul", domain="com.microsoft")
def _dynamic_quantize_matmul(c: Importer, n: OnnxNode) -> Tensor:
    x, scale, point = dynamic_quantize(c, n[0])
    product = c.emit("mul", scale, parameter(c, n[2]))
    out = integer_product(c, x, n[1], point, n.optional(3), product)
    bias = n.optional(4)
    return out if bias is None else c.emit("add", out, bias)


@onnx_op("MatMulIntegerToFloat", domain="com.microsoft")
def _matmul_integer_to_float(c: Importer, n: OnnxNode) -> Tensor:
    scale = c.emit("mul", parameter(c, n[2]), parameter(c, n[3]))
    out = integer_product(c, n[0], n[1], n.optional(4), n.optional(5), scale)
    bias = n.optional(6)
    return out if bias is None else c.emit("add", out, bias)
