"""ONNX normalizations."""

from __future__ import annotations

import numpy as np

from sparsec.compiler.frontend.importer import Importer, OnnxNode, normal_axis, onnx_op
from sparsec.compiler.frontend.tensor import Fail, Tensor, constant
from sparsec.compiler.ir import element_count


@onnx_op("LayerNormalization")
def _layer_normalization(c: Importer, n: OnnxNode) -> Tensor:
    """Over the axes from `axis` on; gamma and beta may broadcast."""
    if n.wants(1) or n.wants(2):
        raise Fail("its outputs Mean and InvStdDev are not supported")
    axis = normal_axis(n.attrs.get("axis", -1), len(n[0].shape))
    return layernorm(c, n[0], n[1], n.optional(2), float(n.attrs.get("epsilon", 1e-5)), axis)


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
