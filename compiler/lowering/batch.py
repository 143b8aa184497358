"""Whether sequences of a batch are independent, so that a batch can be computed piece by piece."""

from __future__ import annotations

from sparsec.compiler.ir import BatchDim, Graph, Node
from sparsec.compiler.ops import OPS

#: Attributes that name axes, by op.
_AXES = ("axis", "axes")


def _touches_batch(node: Node, graph: Graph) -> bool:
    """Whether an op works along the leading batch extent of one of its inputs or results."""
    values = [graph.values[n] for n in (*node.inputs, *node.outputs) if n]
    batched = [v for v in values if any(isinstance(d, BatchDim) for d in v.shape)]
    if not batched:
        return False
    if any(isinstance(d, BatchDim) for v in batched for d in v.shape[1:]):
        return True
    if OPS[node.op].elementwise:
        rank = max(len(v.shape) for v in values)
        return any(len(v.shape) != rank for v in batched)
    if node.op == "reshape":
        return False
    if node.op == "transpose":
        return int(node.attrs["perm"][0]) != 0
    if node.op == "expand":
        source = graph.values[node.inputs[0]]
        return (
            bool(source.shape)
            and len(source.shape) != len(node.attrs["shape"])
            and source in batched
        )
    if node.op == "gather":
        data = graph.values[node.inputs[0]]
        ids = graph.values[node.inputs[1]]
        axis = int(node.attrs.get("axis", 0)) % len(data.shape)
        return (data in batched and axis == 0) or (ids in batched and axis != 0)
    if node.op in ("gather_elements", "scatter_elements") and len(batched) < len(values):
        return True
    if node.op == "gather_nd" and not (node.attrs["batch_dims"] and len(batched) == len(values)):
        return True
    if node.op == "scatter_nd":
        return True
    if node.op in ("matmul", "matmul_integer"):
        return any(len(v.shape) < 3 and v is not values[0] for v in batched[:-1])
    if node.op in ("linear", "qlinear", "linear_integer", "attention", "layernorm"):
        return False
    rank = len(graph.values[node.inputs[0]].shape)
    for key in _AXES:
        if key in node.attrs:
            axes = node.attrs[key]
            axes = (axes,) if isinstance(axes, int) else (axes or range(rank))
            if any(int(a) % max(rank, 1) == 0 for a in axes):
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
    return not any(_touches_batch(node, graph) for node in graph.nodes)
