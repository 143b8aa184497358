"""Places where an index that is data meets a table: what the record of a bad index says of them."""

from __future__ import annotations

import numpy as np

from sparsec.compiler.codegen.plan import Site
from sparsec.compiler.ir import BatchDim, Graph, Node, Shape


def site_of(node: Node, graph: Graph) -> Site:
    """The place where `node` looks its indices, the second operand, up in the first."""
    indices = graph.values[node.inputs[1]]
    step, token = _by_sequences(indices.shape, graph.length)
    origin = _origin(indices.name, graph)
    number = graph.inputs.index(origin) if origin in graph.inputs else -1
    return Site(node.inputs[0], node.source, number, step, token)


def _by_sequences(shape: Shape, length: int) -> tuple[int, int]:
    """How many elements of a tensor belong to a sequence, and how many of these to a token.

    0 where they do not lie in order of sequences, or of the `length` tokens of a sequence.
    """
    if not shape or not isinstance(shape[0], BatchDim):
        return 0, 0
    inner = 1
    for dim in shape[1:]:
        if isinstance(dim, BatchDim):
            return 0, 0
        inner *= dim
    step = shape[0].coef * inner
    tokens = next((d for d in (shape[0].coef, *shape[1:]) if d != 1), 1)
    return step, step // length if length and tokens == length else 0


def _origin(name: str, graph: Graph) -> str:
    """The value whose elements, in the same order, are those of an integer value."""
    makers = graph.producers()
    while name in makers:
        node = makers[name]
        whole = node.op == "cast" and np.can_cast(
            graph.values[node.inputs[0]].dtype, graph.values[name].dtype, "safe"
        )
        if node.op != "reshape" and not whole:
            break
        name = node.inputs[0]
    return name
