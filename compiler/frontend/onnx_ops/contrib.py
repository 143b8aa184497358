"""Fused ops of ONNX Runtime (domain com.microsoft), taken apart again."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.compiler.frontend.importer import Importer, OnnxNode, onnx_op
from sparsec.compiler.frontend.onnx_ops.matmul import scaled
from sparsec.compiler.frontend.onnx_ops.normalization import layernorm
from sparsec.compiler.frontend.tensor import Fail, Tensor

_MS = "com.microsoft"


@onnx_op("Gelu", "BiasGelu", "FastGelu", domain=_MS)
def _gelu(c: Importer, n: OnnxNode) -> Tensor:
    bias = n.optional(1)
    x = n[0] if bias is None else c.emit("add", n[0], bias)
    return c.emit("gelu", x, approximate="tanh" if n.op == "FastGelu" else "none")


@onnx_op("SkipLayerNormalization", domain=_MS)
def _skip_layer_normalization(c: Importer, n: OnnxNode) -> Sequence[Tensor | None]:
    """(input + skip + bias) -> layernorm; output 3 is the sum."""
    if n.wants(1) or n.wants(2):
        raise Fail("its outputs mean and inv_std_var are not supported")
    total = c.emit("add", n[0], n[1])
    bias = n.optional(4)
    total = total if bias is None else c.emit("add", total, bias)
    eps = float(n.attrs.get("epsilon", 1e-12))
    out = layernorm(c, total, n[2], n.optional(3), eps, len(total.shape) - 1)
    return [out, None, None, total]


@onnx_op("FusedMatMul", domain=_MS)
def _fused_matmul(c: Importer, n: OnnxNode) -> Tensor:
    if n.attrs.get("transBatchA", 0) or n.attrs.get("transBatchB", 0):
        raise Fail("transBatchA and transBatchB are not supported")
    a = _swap(c, n[0]) if n.attrs.get("transA", 0) else n[0]
    b = _swap(c, n[1]) if n.attrs.get("transB", 0) else n[1]
    return scaled(c, c.emit("matmul", a, b), n.attrs.get("alpha", 1.0))


def _swap(c: Importer, x: Tensor) -> Tensor:
    rank = len(x.shape)
    return c.transpose(x, (*range(rank - 2), rank - 1, rank - 2)) if rank > 1 else x
