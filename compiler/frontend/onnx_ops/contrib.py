"""Fused elementwise, normalization and matrix ops of ONNX Runtime, taken apart again.

They are in the domain com.microsoft.  So is, once loaded, a LayerNormalization in front of opset 17
(`load_model` moves it there): ONNX Runtime has it in every opset.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.compiler.frontend.importer import Importer, OnnxNode, normal_axis, onnx_op
from sparsec.compiler.frontend.onnx_ops.matmul import gemm, scaled
from sparsec.compiler.frontend.onnx_ops.normalization import layer_normalization, layernorm
from sparsec.compiler.frontend.tensor import Fail, Tensor

_MS = "com.microsoft"


@onnx_op("Gelu", "BiasGelu", "FastGelu", domain=_MS)
def _gelu(c: Importer, n: OnnxNode) -> Tensor:
    bias = n.optional(1)
    x = n[0] if bias is None else c.emit("add", n[0], bias)
    return c.emit("gelu", x, approximate="tanh" if n.op == "FastGelu" else "none")


@onnx_op("QuickGelu", domain=_MS)
def _quick_gelu(c: Importer, n: OnnxNode) -> Tensor:
    """x * sigmoid(alpha x)."""
    gate = c.emit("sigmoid", scaled(c, n[0], n.attrs.get("alpha", 1.702)))
    return c.emit("mul", n[0], gate)


@onnx_op("LayerNormalization", domain=_MS)
def _layer_normalization(c: Importer, n: OnnxNode) -> Sequence[Tensor]:
    return layer_normalization(c, n)


@onnx_op("SimplifiedLayerNormalization", domain=_MS)
def _rms_normalization(c: Importer, n: OnnxNode) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * gamma, over the axes from `axis` on."""
    x = n[0]
    rank = len(x.shape)
    axes = tuple(range(normal_axis(n.attrs.get("axis", -1), rank), rank))
    mean = c.emit("reduce_mean", c.emit("mul", x, x), axes=axes, keepdims=True)
    shifted = c.emit("add", mean, c.scalar(float(n.attrs.get("epsilon", 1e-5)), x))
    return c.emit("mul", c.emit("div", x, c.emit("sqrt", shifted)), n[1])


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


@onnx_op("FusedGemm", domain=_MS)
def _fused_gemm(c: Importer, n: OnnxNode) -> Tensor:
    """Gemm and an activation."""
    out = gemm(c, n)
    name = n.attrs.get("activation", "")
    if name in ("Relu", "Tanh", "Sigmoid"):
        return c.emit(name.lower(), out)
    if name:
        raise Fail(f"its activation {name} is not supported")
    return out


def _swap(c: Importer, x: Tensor) -> Tensor:
    rank = len(x.shape)
    return c.transpose(x, (*range(rank - 2), rank - 1, rank - 2)) if rank > 1 else x
