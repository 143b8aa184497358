"""Recognize what the Attention op of ONNX does with queries that may look at no key.

    bias ─┬─ reduce_max ── equal -inf ─────┐
          └─ add scores ── softmax ── where(.., 0, softmax)
    ->
    softmax ─┬─ isnan ──┐
             └── where(.., 0, softmax)

A row of nothing but -inf makes softmax NaN, so both choose the same rows, unless a score itself is
NaN; then the second gives 0, which is also what torch.onnx has written for such rows since 2.0.  It
needs nothing but the probabilities, so that ``fuse_attention`` can take it up.
"""

from __future__ import annotations

import numpy as np

from sparsec.compiler.editor import Match, rewrite
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.passes.patterns import operand_orders, uniform


def masked_rows(graph: Graph) -> Graph:
    """Apply the rule of this file until it does not fire."""
    return rewrite(graph, [_guard])


def _unexpanded(m: Match, name: str) -> str:
    while (node := m.producer(name, "expand")) is not None:
        name = node.inputs[0]
    return name


def _masked_bias(m: Match, name: str) -> str | None:
    """The bias of whose last axis the value says that it is -inf throughout, if it says so."""
    node = m.producer(_unexpanded(m, name), "equal")
    if node is None:
        return None
    for highest, bound in operand_orders(node):
        reduce = m.producer(highest, "reduce_max")
        if reduce is None or uniform(m.constant(bound)) != -np.inf:
            continue
        rank = len(m.type(reduce.inputs[0]).shape)
        if tuple(reduce.attrs["axes"]) == (rank - 1,) and reduce.attrs["keepdims"]:
            return _unexpanded(m, reduce.inputs[0])
    return None


def _guard(m: Match, node: Node) -> bool:
    """where(bias is -inf throughout, 0, softmax) -> where(isnan(softmax), 0, softmax)."""
    if node.op != "where" or uniform(m.constant(node.inputs[1])) != 0:
        return False
    softmax = m.producer(node.inputs[2], "softmax")
    bias = _masked_bias(m, node.inputs[0])
    if softmax is None or bias is None:
        return False
    shape = m.type(softmax.output).shape
    scores = m.producer(softmax.inputs[0], "add")
    if scores is None or softmax.attrs["axis"] != len(shape) - 1:
        return False
    if bias not in {_unexpanded(m, name) for name in scores.inputs}:
        return False
    empty = m.edit.emit("isnan", [softmax.output], source=node.source)
    out = m.edit.emit("where", [empty, *node.inputs[1:]], source=node.source)
    m.edit.replace_uses(node.output, out)
    return True
