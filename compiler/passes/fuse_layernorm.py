"""Recognize layer normalization over the last axis.

    x ─┬─ reduce_mean ─ sub ─┬─ pow 2 ─ reduce_mean ─ add eps ─ sqrt ─┐
       └────────────────┘    └──────────────────────────────────── div ─ mul gamma ─ add beta
    ->
    layernorm(x, gamma, beta) {eps}

The quotient may be written with reciprocal or pow, gamma may be anywhere in the product, the
centred x may be computed twice, and gamma or beta may be missing.
"""

from __future__ import annotations

import numpy as np

from sparsec.compiler.editor import Match, rewrite
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.passes.factors import product
from sparsec.compiler.passes.patterns import (
    last_axis_vector,
    operand_orders,
    sources,
    uniform,
    with_constant,
)


def fuse_layernorm(graph: Graph) -> Graph:
    """Apply the rules of this file until none fires."""
    return rewrite(graph, [_normalize, _scale, _shift])


def _is_last_mean(m: Match, node: Node | None) -> bool:
    if node is None or node.op != "reduce_mean" or not node.attrs["keepdims"]:
        return False
    return tuple(node.attrs["axes"]) == (len(m.type(node.inputs[0]).shape) - 1,)


def _centred(m: Match, name: str) -> str | None:
    """x, if the value is x minus its mean."""
    node = m.producer(name, "sub")
    if node is None:
        return None
    mean = m.producer(node.inputs[1])
    if mean is None or not _is_last_mean(m, mean) or mean.inputs[0] != node.inputs[0]:
        return None
    return node.inputs[0]


def _square(m: Match, name: str) -> str | None:
    """c, if the value is c * c."""
    node = m.producer(name, "mul", "pow")
    if node is None:
        return None
    a, b = node.inputs
    return a if (m.scalar(b) == 2 if node.op == "pow" else a == b) else None


def _deviation(m: Match, name: str, exponent: float) -> tuple[str, float] | None:
    """x and eps, if the value is ``(variance(x) + eps) ** exponent``."""
    root = m.producer(name, "sqrt", "pow")
    if root is None:
        return None
    if (0.5 if root.op == "sqrt" else m.scalar(root.inputs[1])) != exponent:
        return None
    shifted = m.producer(root.inputs[0], "add")
    pair = with_constant(m, shifted) if shifted is not None else None
    eps = uniform(pair[1]) if pair is not None else None
    if pair is None or eps is None:
        return None
    variance = m.producer(pair[0])
    if variance is None or not _is_last_mean(m, variance):
        return None
    centred = _square(m, variance.inputs[0])
    x = _centred(m, centred) if centred is not None else None
    return None if x is None else (x, float(eps))


def _normalize(m: Match, node: Node) -> bool:
    """(x - mean) / deviation * gamma -> layernorm(x, gamma, 0)."""
    if node.op not in ("mul", "div") or m.type(node.output).dtype != np.float32:
        return False
    value = m.type(node.output)
    factors = product(m, node.output)
    if len(factors.over) + len(factors.under) != 2 or not factors.over:
        return False
    if factors.under:
        (c,), found = factors.over, _deviation(m, factors.under[0], 0.5)
    else:
        c, rest = factors.over
        found = _deviation(m, rest, -0.5)
        if found is None:
            c, found = rest, _deviation(m, c, -0.5)
    if found is None or _centred(m, c) != found[0]:
        return False
    x, eps = found
    extent = value.shape[-1]
    gamma = last_axis_vector(factors.constant, extent)
    if gamma is None or m.type(x).shape != value.shape:
        return False
    gamma_name = m.edit.constant(gamma.astype(np.float32), "gamma")
    beta_name = m.edit.constant(np.zeros_like(gamma, np.float32), "beta")
    new = m.edit.emit("layernorm", [x, gamma_name, beta_name], source=sources(node), eps=eps)
    m.edit.replace_uses(node.output, new)
    return True


def _extend(m: Match, node: Node, part: int, neutral: float) -> bool:
    """Make a constant vector gamma (part 1) or beta (part 2) of the layernorm that `node` reads.

    The part that is replaced must hold the neutral element, and beta must be 0.
    """
    for name, other in operand_orders(node):
        norm = m.producer(name, "layernorm")
        if norm is None or m.only_user(name) is not node:
            continue
        value = m.type(node.output)
        vector = last_axis_vector(m.constant(other), value.shape[-1])
        old = uniform(m.constant(norm.inputs[part]))
        if vector is None or value.shape != m.type(name).shape:
            return False
        if old != neutral or uniform(m.constant(norm.inputs[2])) != 0:
            return False
        inputs = list(norm.inputs)
        inputs[part] = m.edit.constant(vector, other)
        new = m.edit.emit("layernorm", inputs, source=sources(norm, node), eps=norm.attrs["eps"])
        m.edit.replace_uses(node.output, new)
        return True
    return False


def _scale(m: Match, node: Node) -> bool:
    """layernorm(x, 1, 0) * gamma -> layernorm(x, gamma, 0)."""
    return node.op == "mul" and _extend(m, node, 1, neutral=1)


def _shift(m: Match, node: Node) -> bool:
    """layernorm(x, gamma, 0) + beta -> layernorm(x, gamma, beta)."""
    return node.op == "add" and _extend(m, node, 2, neutral=0)
