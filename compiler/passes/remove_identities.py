"""Drop operations that change nothing.

    x * 1, x / 1, x + 0, x - 0                  ->  x
    cast(x) to its own type                     ->  x
    cast(cast(x)) that loses nothing            ->  cast(x)
    slice of everything, expand to own shape    ->  x
    quantize(dequantize(q)), equal parameters   ->  q
    op(expand(x), y) where broadcasting does it ->  op(x, y)

Reshapes and transposes are the business of ``sink_layout``.
"""

from __future__ import annotations

import numpy as np

from sparsec.compiler.editor import Match, rewrite
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.ops import OPS, infer
from sparsec.compiler.passes.patterns import per_tensor, uniform


def remove_identities(graph: Graph) -> Graph:
    """Apply the rules of this file until none fires."""
    return rewrite(graph, [_neutral, _cast, _whole, _requantize, _expand])


def _forward(m: Match, node: Node, name: str) -> bool:
    """Let the readers of `node` read `name` instead, if it is the same type."""
    old, new = m.type(node.output), m.type(name)
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return False
    m.edit.replace_uses(node.output, name)
    return True


def _neutral(m: Match, node: Node) -> bool:
    if node.op not in ("mul", "div", "add", "sub"):
        return False
    neutral = 1 if node.op in ("mul", "div") else 0
    a, b = node.inputs
    for x, c in ((a, b), (b, a))[: 2 if node.op in ("mul", "add") else 1]:
        value = uniform(m.constant(c))
        if value is not None and value == neutral and _forward(m, node, x):
            return True
    return False


def _holds(outer: np.dtype, inner: np.dtype) -> bool:
    """Whether every value of type `inner` is exact in type `outer`."""
    return inner == np.bool_ or (outer != np.bool_ and np.can_cast(inner, outer, "safe"))


def _cast(m: Match, node: Node) -> bool:
    if node.op != "cast":
        return False
    if _forward(m, node, node.inputs[0]):
        return True
    inner = m.producer(node.inputs[0], "cast")
    if inner is None:
        return False
    x = inner.inputs[0]
    if not _holds(m.type(inner.output).dtype, m.type(x).dtype):
        return False
    new = m.edit.emit("cast", [x], source=node.source, to=node.attrs["to"])
    m.edit.replace_uses(node.output, new)
    return True


def _whole(m: Match, node: Node) -> bool:
    if node.op == "slice":
        return all(s > 0 for s in node.attrs["steps"]) and _forward(m, node, node.inputs[0])
    if node.op == "expand" or (node.op in ("concat", "split") and len(node.inputs) == 1):
        return len(node.outputs) == 1 and _forward(m, node, node.inputs[0])
    return False


def _requantize(m: Match, node: Node) -> bool:
    inner = m.producer(node.inputs[0], "dequantize") if node.op == "quantize" else None
    if inner is None:
        return False
    pair = per_tensor(m, inner), per_tensor(m, node)
    # A scale near the end of float32's range could overflow or vanish on the way.
    if pair[0] is None or pair[0] != pair[1] or not 1e-30 < pair[0][0] < 1e30:
        return False
    return m.type(inner.inputs[0]).dtype.itemsize == 1 and _forward(m, node, inner.inputs[0])


def _expand(m: Match, node: Node) -> bool:
    row = OPS[node.op]
    if not row.elementwise or row.quantizes or len(node.inputs) < 2:
        return False
    inputs = list(node.inputs)
    for i, name in enumerate(inputs):
        expand = m.producer(name, "expand")
        if expand is None:
            continue
        trial = [*inputs[:i], expand.inputs[0], *inputs[i + 1 :]]
        ((_, shape),) = infer(node.op, [m.type(n) for n in trial], node.attrs)
        if tuple(shape) == m.type(node.output).shape:
            inputs = trial
    if inputs == list(node.inputs):
        return False
    new = m.edit.emit(node.op, inputs, source=node.source, **node.attrs)
    m.edit.replace_uses(node.output, new)
    return True
