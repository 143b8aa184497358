"""Element types that lanes hold, and the elementwise nodes that are computed on them."""

from __future__ import annotations

import numpy as np

from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.ops import OPS
from sparsec.compiler.ops.expressions import BOOL, BYTES, F32, I32, S8, U8

LANE_DTYPES = (F32, I32, U8, S8)


#: Elementwise ops of which lanes compute at least some nodes: of `pow`, squares.
LANE_OPS = tuple(
    op
    for op, row in OPS.items()
    if row.elementwise and (row.elementwise.lanes is not None or row.quantizes or op == "pow")
)


def is_square(node: Node, graph: Graph) -> bool:
    """Whether a node is `pow` of floats with the constant exponent 2, which reads its base only."""
    if node.op != "pow" or graph.values[node.inputs[0]].dtype.kind != "f":
        return False
    exponent = graph.constants.get(node.inputs[1])
    return exponent is not None and exponent.size == 1 and bool(exponent.reshape(-1)[0] == 2)


def supported(node: Node, graph: Graph) -> bool:
    """Whether a node can be part of a lane program, whatever its operands' shapes."""
    row = OPS[node.op]
    if row.elementwise is None or len(node.outputs) != 1:
        return False
    types = [graph.values[n].dtype for n in node.inputs if n]
    out = graph.values[node.output].dtype
    if any(t not in (*LANE_DTYPES, BOOL) for t in (*types, out)):
        return False
    if row.quantizes:
        return _is_quantization(node, graph)
    return is_square(node, graph) or bool(row.elementwise.vector(node.op, node.attrs, types))


def _is_quantization(node: Node, graph: Graph) -> bool:
    """Whether lanes have the types of a `quantize` or `dequantize`, and a place for its numbers."""
    first, out = graph.values[node.inputs[0]].dtype, graph.values[node.output].dtype
    scale, zero = (graph.constants.get(n) for n in node.inputs[1:])
    if any(
        graph.values[n].shape not in ((), (1,)) for n in node.inputs[1:] if n not in graph.constants
    ):
        return False
    if node.op == "dequantize" and first not in (*BYTES, I32):
        return False
    if node.op == "quantize" and (
        out not in BYTES or (zero is not None and np.unique(zero).size != 1)
    ):
        return False
    if scale is None or scale.size == 1:
        return True
    rank = len(graph.values[node.inputs[0]].shape)
    return int(node.attrs.get("axis", 1)) % max(rank, 1) == rank - 1


__all__ = [
    "BOOL",
    "BYTES",
    "F32",
    "I32",
    "LANE_DTYPES",
    "LANE_OPS",
    "S8",
    "U8",
    "is_square",
    "supported",
]
