"""Recognize GELU.

    x ─┬─ div sqrt(2) ─ erf ─ add 1 ─┐
       ├──────────────────────────── mul ─ mul 0.5     ->   gelu(x) {approximate: none}

    x ─┬─ sqrt(2/pi) * (x + 0.044715 x^3) ─ tanh ─ add 1 ─┐
       ├───────────────────────────────────────────────── mul ─ mul 0.5
                                                       ->   gelu(x) {approximate: tanh}

The three factors may be multiplied in any order, and the argument of erf or tanh may be written as
any polynomial with the same coefficients.  In files of half precision these are rounded to it.
"""

from __future__ import annotations

import math

import numpy as np

from sparsec.compiler.editor import Match, rewrite
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.passes.factors import polynomial, product
from sparsec.compiler.passes.patterns import sources, uniform, with_constant

# Exporters write the constants with as few as five digits.
_TOLERANCE = 2e-5
_TANH = math.sqrt(2 / math.pi)


def _half(value: float) -> float:
    """The nearest half-precision number."""
    return float(np.float16(value))


_ARGUMENTS: dict[str, tuple[str, tuple[dict[int, float], ...]]] = {
    "erf": (
        "none",
        tuple({1: c} for c in (math.sqrt(0.5), 1 / _half(math.sqrt(2)), _half(math.sqrt(0.5)))),
    ),
    "tanh": (
        "tanh",
        tuple({1: c, 3: c * d} for c, d in ((_TANH, 0.044715), (_half(_TANH), _half(0.044715)))),
    ),
}


def fuse_gelu(graph: Graph) -> Graph:
    """Apply the rule of this file until it does not fire."""
    return rewrite(graph, [_gelu])


def _gate(m: Match, name: str) -> Node | None:
    """The erf or tanh node f, if the value is 1 + f."""
    node = m.producer(name, "add")
    pair = with_constant(m, node) if node is not None else None
    return m.producer(pair[0], "erf", "tanh") if pair and uniform(pair[1]) == 1 else None


def _is_argument(m: Match, gate: Node, x: str) -> bool:
    found = polynomial(m, gate.inputs[0], x)
    return found is not None and any(
        all(
            math.isclose(found.get(d, 0.0), wanted.get(d, 0.0), rel_tol=_TOLERANCE)
            for d in {*found, *wanted}
        )
        for wanted in _ARGUMENTS[gate.op][1]
    )


def _below(m: Match, name: str, depth: int = 6) -> list[str]:
    """Run-time values that a polynomial may be made of, itself included."""
    if m.constant(name) is not None:
        return []
    node = m.producer(name, "mul", "div", "add", "pow") if depth else None
    below = [n for operand in node.inputs for n in _below(m, operand, depth - 1)] if node else []
    return list(dict.fromkeys([name, *below]))


def _gelu(m: Match, node: Node) -> bool:
    if node.op not in ("mul", "div") or m.type(node.output).dtype != np.float32:
        return False
    for name in product(m, node.output).over:
        gate = _gate(m, name)
        if gate is None:
            continue
        for x in _below(m, gate.inputs[0]):
            if _is_argument(m, gate, x) and _completes(m, node, name, x):
                source = sources(gate, node)
                mode = _ARGUMENTS[gate.op][0]
                new = m.edit.emit("gelu", [x], source=source, approximate=mode)
                m.edit.replace_uses(node.output, new)
                return True
    return False


def _completes(m: Match, node: Node, gate: str, x: str) -> bool:
    """Whether the node is 0.5 * x * gate and nothing else."""
    factors = product(m, node.output, stop={x})
    half = uniform(factors.constant)
    return (
        not factors.under
        and sorted(factors.over) == sorted([x, gate])
        and half is not None
        and math.isclose(half, 0.5, rel_tol=1e-6)
        and m.type(x).shape == m.type(node.output).shape
    )
