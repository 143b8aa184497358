"""ONNX matrix products of floats."""

from __future__ import annotations

from sparsec.compiler.frontend.importer import Importer, OnnxNode, onnx_op
from sparsec.compiler.frontend.tensor import Tensor


@onnx_op("MatMul")
def _matmul(c: Importer, n: OnnxNode) -> Tensor:
    return c.emit("matmul", n[0], n[1])


@onnx_op("Gemm")
def _gemm(c: Importer, n: OnnxNode) -> Tensor:
    return gemm(c, n)


def gemm(c: Importer, n: OnnxNode) -> Tensor:
    """alpha * A' B' + beta * C, as matmul, mul and add."""
    a = c.transpose(n[0], (1, 0)) if n.attrs.get("transA", 0) else n[0]
    b = c.transpose(n[1], (1, 0)) if n.attrs.get("transB", 0) else n[1]
    out = scaled(c, c.emit("matmul", a, b), n.attrs.get("alpha", 1.0))
    bias = n.optional(2)
    if bias is None:
        return out
    return c.emit("add", out, scaled(c, bias, n.attrs.get("beta", 1.0)))


def scaled(c: Importer, x: Tensor, factor: float) -> Tensor:
    """x * factor; x itself if the factor is 1."""
    return x if factor == 1.0 else c.emit("mul", x, c.scalar(factor, x))
