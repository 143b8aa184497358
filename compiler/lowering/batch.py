"""Whether sequences of a batch are independent, so that a batch can be computed piece by piece."""

from __future__ import annotations

from sparsec.compiler.axes import flow_of
from sparsec.compiler.ir import BatchDim, Graph, Node


def _mixes(node: Node, graph: Graph) -> bool:
    """Whether a node's pieces of a batch are not the pieces of its results."""
    operands = [graph.values[n] if n else None for n in node.inputs]
    results = [graph.values[n] for n in node.outputs]
    for value in (*operands, *results):
        if value is not None and any(isinstance(d, BatchDim) for d in value.shape[1:]):
            return True
    flow = flow_of(node, graph.values)
    if flow.regroups:
        return False
    for i, value in enumerate(operands):
        if value is None or not value.shape or not isinstance(value.shape[0], BatchDim):
            continue
        leads = all((i, 0) in lines[0] for lines in flow.lines if lines)
        if not leads or any(not lines for lines in flow.lines) or (i, 0) in flow.mixed:
            return True
    return False


def separable(graph: Graph) -> bool:
    """True where running a batch in pieces gives what running it whole gives.

    Conservative: every batched value has the batch in its first extent only, and no op mixes
    positions along that extent.
    """
    ends = [graph.values[n] for n in (*graph.inputs, *graph.outputs)]
    if any(not v.shape or v.shape[0] != BatchDim(1) for v in ends):
        return False
    return not any(_mixes(node, graph) for node in graph.nodes)
