"""General kernels: C for any core op on dense row-major tensors.

They make patterns an optimization and never a condition: whatever no faster kernel takes is
compiled through these.  A kernel is one C function (``templates/general/*.c.j2``) for one node, or
for a group of elementwise nodes of one shape, to be pasted after ``rt.h`` and ``ops.h``::

    static void FUNCTION(const sparsec_rt *rt, T *restrict y0, ..., const T *restrict x0, ...)

Outputs come first, then the inputs that are present; constants are passed like any tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sparsec.compiler.codegen.general import contraction, elementwise, indexing, layout, reduction
from sparsec.compiler.codegen.general.attention import emit_attention
from sparsec.compiler.codegen.general.convolution import emit_conv, emit_conv_integer
from sparsec.compiler.codegen.general.render import Call, NotGeneral
from sparsec.compiler.codegen.general.tokens import emit_lengths
from sparsec.compiler.ir import BatchDim, Graph, Node
from sparsec.compiler.ops import OPS
from sparsec.errors import UnsupportedError

EMITTERS: dict[str, Callable[[Call], str]] = {
    **{op: elementwise.emit_group for op, row in OPS.items() if row.elementwise},
    "reshape": layout.emit_reshape,
    "transpose": layout.emit_transpose,
    "expand": layout.emit_expand,
    "concat": layout.emit_concat,
    "slice": layout.emit_slice,
    "gather": layout.emit_gather,
    "split": layout.emit_split,
    "gather_elements": indexing.emit_gather_elements,
    "gather_nd": indexing.emit_gather_nd,
    "scatter_elements": indexing.emit_scatter_elements,
    "scatter_nd": indexing.emit_scatter_nd,
    "argmax": indexing.emit_extreme_index,
    "argmin": indexing.emit_extreme_index,
    "topk": indexing.emit_topk,
    "reduce_sum": reduction.emit_reduce,
    "reduce_mean": reduction.emit_reduce,
    "reduce_prod": reduction.emit_reduce,
    "reduce_max": reduction.emit_reduce,
    "reduce_min": reduction.emit_reduce,
    "softmax": reduction.emit_softmax,
    "cumsum": reduction.emit_cumsum,
    "layernorm": reduction.emit_layernorm,
    "matmul": contraction.emit_matmul,
    "linear": contraction.emit_linear,
    "linear_integer": contraction.emit_linear_integer,
    "matmul_integer": contraction.emit_matmul_integer,
    "qlinear": contraction.emit_qlinear,
    "conv": emit_conv,
    "conv_integer": emit_conv_integer,
    "attention": emit_attention,
    "lengths": emit_lengths,
}


def general_kernel(node: Node, graph: Graph, function: str, site: int = 0) -> str:
    """C text of a static function that computes one node.

    Args:
        node: any node of `graph`.
        graph: has the types of the node's values.
        function: name of the C function; names derived from it are used too.
        site: number in ``rt->sites`` of the place where it looks indices up, if it does.

    Raises:
        ValueError: there is no general kernel for it; :func:`supported` says so beforehand.
    """
    if node.op not in EMITTERS:
        raise NotGeneral(f"there is no general kernel for {node.op}")
    return EMITTERS[node.op](Call.of(node, graph, function, site))


def multiply_adds(node: Node, graph: Graph) -> int:
    """Multiplications that the general kernel of a node makes for each sample; 0 where it makes
    none to speak of."""
    terms = OPS[node.op].terms
    if terms is None:
        return 0
    shapes = [graph.values[name].shape for name in node.inputs if name]
    result = graph.values[node.output].shape
    made = math.prod(d.coef if isinstance(d, BatchDim) else d for d in result)
    return made * terms(node.attrs, shapes)


def supported(node: Node, graph: Graph) -> str | None:
    """None if :func:`general_kernel` takes the node, else the reason why not."""
    try:
        general_kernel(node, graph, "probe")
    except ValueError as error:
        return str(error)
    return None


def check_supported(graph: Graph) -> None:
    """Raise UnsupportedError with every node that no kernel covers."""
    bad = []
    for node in graph.nodes:
        reason = supported(node, graph)
        if reason is not None:
            bad.append((node.source or node.output, node.op, reason))
    if bad:
        listing = "\n".join(f"  {name} ({op}): {reason}" for name, op, reason in bad)
        raise UnsupportedError(f"{len(bad)} node(s) cannot be compiled:\n{listing}", bad)


def group_elementwise(graph: Graph, nodes: Sequence[Node]) -> list[list[Node]]:
    """Partition consecutive nodes into groups for :func:`general_kernel_for_group`.

    Neighbours that are elementwise, have one result shape and share values form a group; every
    other node is a group of its own.  The order stays.
    """
    return elementwise.partition(graph, nodes)


def group_interface(nodes: Sequence[Node], graph: Graph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Values that a group reads, each once, and those it makes that are needed outside of it."""
    made = {node.output for node in nodes}
    inputs = dict.fromkeys(n for node in nodes for n in node.inputs if n and n not in made)
    return tuple(inputs), tuple(elementwise.group_outputs(nodes, graph))


def general_kernel_for_group(nodes: Sequence[Node], graph: Graph, function: str) -> str:
    """C text of one fused loop for elementwise nodes of one result shape.

    The parameters are the outputs and inputs that :func:`group_interface` names, in its order.

    Raises:
        ValueError: a node is not elementwise or not covered, or the shapes differ.
    """
    inputs, outputs = group_interface(nodes, graph)
    call = Call(
        function,
        tuple(nodes),
        graph,
        tuple(graph.values[n] for n in inputs),
        tuple(graph.values[n] for n in outputs),
    )
    return elementwise.emit_group(call)
