"""ONNX Runtime's ops on quantized tensors (domain com.microsoft), taken apart again.

Each is dequantize, the float op, quantize, which is what its documentation says; the last bit of a
byte may differ from ONNX Runtime's kernels, which fold the scales together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from sparsec.compiler.frontend.importer import (
    IMPORTERS,
    Importer,
    OnnxNode,
    normal_axis,
    onnx_op,
)
from sparsec.compiler.frontend.onnx_ops.quantization import integer_product, parameter
from sparsec.compiler.frontend.tensor import Fail, Tensor, constant, fixed
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
    """`opset` says which Softmax: before 13, over all axes from `axis` on together.

    A probability of 1 saturates; in ONNX Runtime 1.31 it wraps, to 0 in steps of 1/256.
    """
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


@onnx_op("MatMulNBits", domain=_MS)
def _matmul_nbits(c: Importer, n: OnnxNode) -> Tensor:
    """x times weights of 4 or 8 bits with a scale for each block of a column; computed in float32.

    `accuracy_level`, which lets ONNX Runtime round x as well, is not followed.
    """
    x = n[0]
    k, columns, size = (int(n.attrs[name]) for name in ("K", "N", "block_size"))
    bits = int(n.attrs.get("bits", 4))
    if bits not in (4, 8):
        raise Fail(f"weights of {bits} bits are not supported; 4 and 8 are")
    if n.optional(4) is not None:
        raise Fail("its input g_idx is not supported")
    blocks = -(-k // size)
    stored = [n[1], n[2], n.optional(3)]
    if not all(t is None or t.known for t in stored):
        raise Fail("its weights are not constant")
    q = _numbers(n[1].contents().reshape(columns, -1), bits, blocks * size)
    scales = n[2].contents().astype(np.float32).reshape(columns, blocks)
    points = np.full((columns, blocks), 1 << (bits - 1), np.float32)
    if stored[2] is not None:
        given = stored[2].contents()
        if given.dtype == np.uint8:
            given = _numbers(given.reshape(columns, -1), bits, blocks)
        points = given.astype(np.float32).reshape(columns, blocks)
    wide = q.astype(np.float32).reshape(columns, blocks, size) - points[:, :, None]
    w = (wide * scales[:, :, None]).reshape(columns, blocks * size)[:, :k]
    if fixed(x.shape[-1]) != k:
        raise Fail(f"{list(x.shape)} times weights of {k} rows")
    out = c.emit("matmul", x, constant(np.ascontiguousarray(w.T), n[1].hint))
    bias = n.optional(5)
    return out if bias is None else c.emit("add", out, bias)


@onnx_op("GatherBlockQuantized", domain=_MS)
def _gather_block_quantized(c: Importer, n: OnnxNode) -> Tensor:
    """Rows of a table of 4 or 8 bits with a scale for each block along an axis, in float32.

    Bytes are around half of their range where no zero points are given, and hold two numbers of 4
    bits along the last axis; the types of 4 bits are around 0.
    """
    if not all(t is None or t.known for t in (n[0], n[2], n.optional(3))):
        raise Fail("its table is not constant")
    bits = int(n.attrs.get("bits", 4))
    if bits not in (4, 8):
        raise Fail(f"a table of {bits} bits is not supported; 4 and 8 are")
    data, scales = n[0].contents(), n[2].contents().astype(np.float32)
    axis = normal_axis(n.attrs.get("quantize_axis", 1), data.ndim)
    size = int(n.attrs.get("block_size", 128))
    data, halves = _unpacked(data, bits, axis, size, scales.shape)
    plain_bytes = n[0].dtype == np.uint8 and (halves or bits == 8)
    points = np.full(scales.shape, 1 << (bits - 1) if plain_bytes else 0, np.float32)
    given = n.optional(3)
    if given is not None:
        stored = _halves(given.contents()) if halves else given.contents()
        points = stored[..., : scales.shape[-1]].astype(np.float32)
        if points.shape != scales.shape:
            raise Fail(f"zero points of shape {list(points.shape)}, not {list(scales.shape)}")

    def spread(blocks: np.ndarray) -> np.ndarray:
        return np.repeat(blocks, size, axis).take(range(data.shape[axis]), axis)

    table = (data.astype(np.float32) - spread(points)) * spread(scales)
    attrs = {"axis": n.attrs.get("gather_axis", 0)}
    plain = dataclasses.replace(n, inputs=(constant(table, n[0].hint), n[1]), attrs=attrs)
    made = IMPORTERS["", "Gather"](c, plain)
    assert isinstance(made, Tensor)
    return made


def _halves(data: np.ndarray) -> np.ndarray:
    """Numbers of 4 bits, two of a byte, the low one first."""
    return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)


def _unpacked(
    data: np.ndarray, bits: int, axis: int, size: int, scales: Sequence[int]
) -> tuple[np.ndarray, bool]:
    """A table with a number in each element, and whether its bytes held two."""

    def fits(table: np.ndarray) -> bool:
        want = list(table.shape)
        want[axis] = -(-want[axis] // size)
        return want == list(scales)

    whole = fits(data) and (bits == 8 or data.dtype == np.int8 or data.max(initial=0) < 16)
    pairs = bits == 4 and data.dtype == np.uint8 and fits(_halves(data))
    if whole and pairs:
        raise Fail("its table may be of bytes that hold two numbers or of numbers of 4 bits")
    if not whole and not pairs:
        raise Fail(f"a table of shape {list(data.shape)} with scales of shape {list(scales)}")
    return (_halves(data), True) if pairs else (data, False)


def _numbers(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Bytes [N, ..] as `count` numbers each row; of two in a byte the low one comes first."""
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
    if packed.shape[1] < count:
        raise Fail(f"its weights or zero points of shape {list(packed.shape)} are too few")
    return packed[:, :count]
