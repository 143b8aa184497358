"""ONNX normalizations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsec.compiler.frontend.importer import Importer, OnnxNode, normal_axis, onnx_op
from sparsec.compiler.frontend.tensor import Fail, Tensor, constant
from sparsec.compiler.ir import element_count


@onnx_op("LayerNormalization")
def _layer_normalization(c: Importer, n: OnnxNode) -> Sequence[Tensor]:
    return layer_normalization(c, n)


def layer_normalization(c: Importer, n: OnnxNode) -> Sequence[Tensor]:
    """Over the axes from `axis` on; gamma and beta may broadcast."""
    x = n[0]
    axis = normal_axis(n.attrs.get("axis", -1), len(x.shape))
    eps = float(n.attrs.get("epsilon", 1e-5))
    out = layernorm(c, x, n[1], n.optional(2), eps, axis)
    if not n.wants(1) and not n.wants(2):
        return [out]
    return [out, *(c.cast(t, np.float32) for t in statistics(c, x, axis, eps))]


def statistics(c: Importer, x: Tensor, axis: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean over the axes from `axis` on, and 1 / sqrt(variance + eps); extents stay as 1."""
    axes = tuple(range(axis, len(x.shape)))
    mean = c.emit("reduce_mean", x, axes=axes, keepdims=True)
    centred = c.emit("sub", x, mean)
    variance = c.emit("reduce_mean", c.emit("mul", centred, centred), axes=axes, keepdims=True)
    root = c.emit("sqrt", c.emit("add", variance, c.scalar(eps, x)))
    return mean, c.emit("reciprocal", root)


@onnx_op("BatchNormalization")
def _batch_normalization(c: Importer, n: OnnxNode) -> Tensor:
    """With statistics of the training it is x * factor + offset, both per channel (axis 1)."""
    x = n[0]
    if n.attrs.get("training_mode", 0) or n.wants(1):
        raise Fail("training mode is not supported; export the model in eval mode")
    if not n.attrs.get("spatial", 1):
        raise Fail("statistics per element are not supported; export with opset 9 or newer")
    gamma, beta, mean, variance = (c.cast(n[i], x.dtype) for i in range(1, 5))
    eps = c.scalar(float(n.attrs.get("epsilon", 1e-5)), x)
    factor = c.emit("div", gamma, c.emit("sqrt", c.emit("add", variance, eps)))
    offset = c.emit("sub", beta, c.emit("mul", mean, factor))

    def per_channel(t: Tensor) -> Tensor:
        return c.reshape(t, (*t.shape, *(1 for _ in x.shape[2:])))

    return c.emit("add", c.emit("mul", x, per_channel(factor)), per_channel(offset))


@onnx_op("LpNormalization")
def _lp_normalization(c: Importer, n: OnnxNode) -> Tensor:
    """x / norm along one axis; 0 where the norm is 0."""
    x, p = n[0], int(n.attrs.get("p", 2))
    axes = (normal_axis(n.attrs.get("axis", -1), len(x.shape)),)
    if p not in (1, 2):
        raise Fail(f"p = {p}; it may be 1 or 2")
    size = c.emit("abs", x) if p == 1 else c.emit("mul", x, x)
    norm = c.emit("reduce_sum", size, axes=axes, keepdims=True)
    norm = norm if p == 1 else c.emit("sqrt", norm)
    zero = c.scalar(0, x)
    return c.emit("where", c.emit("equal", norm, zero), zero, c.emit("div", x, norm))


def layernorm(
    c: Importer, x: Tensor, gamma: Tensor, beta: Tensor | None, eps: float, axis: int
) -> Tensor:
    """Layer normalization over the axes from `axis` on."""
    shape, inner = x.shape, x.shape[axis:]
    width = element_count(inner)
    flat = c.reshape(x, (*shape[:axis], width))
    beta = beta if beta is not None else constant(np.zeros(1, x.dtype), "beta")
    parameters = [
        c.reshape(c.expand(_strip(c, p, len(inner)), inner), (width,)) for p in (gamma, beta)
    ]
    return c.reshape(c.emit("layernorm", flat, *parameters, eps=eps), shape)


def _strip(c: Importer, p: Tensor, rank: int) -> Tensor:
    """The parameter without leading extents of 1 beyond `rank`."""
    extra = max(0, len(p.shape) - rank)
    if any(d != 1 for d in p.shape[:extra]):
        raise Fail(f"a parameter of shape {list(p.shape)} is not supported")
    return c.reshape(p, p.shape[extra:])
