"""General kernels: C for any core op on dense row-major tensors.

They make patterns an optimization and never a condition: whatever no faster kernel takes is
compiled through these; the table of kernels says which takes which ops.  A kernel is one C function
(``templates/general/*.c.j2``) for one node, or for a group of elementwise nodes of one shape, to be
pasted after ``rt.h`` and ``ops.h``::

    static void FUNCTION(const sparsec_rt *rt, T *restrict y0, ..., const T *restrict x0, ...)

Outputs come first, then the inputs that are present; constants are passed like any tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsec.compiler.codegen.general import elementwise
from sparsec.compiler.codegen.general.render import Call
from sparsec.compiler.ir import BatchDim, Graph, Node
from sparsec.compiler.ops import OPS


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


def group_elementwise(graph: Graph, nodes: Sequence[Node]) -> list[list[Node]]:
    """Partition consecutive nodes into groups for :func:`group_call`.

    Neighbours that are elementwise, have one result shape and share values form a group; every
    other node is a group of its own.  The order stays.
    """
    return elementwise.partition(graph, nodes)


def group_interface(nodes: Sequence[Node], graph: Graph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Values that a group reads, each once, and those it makes that are needed outside of it."""
    made = {node.output for node in nodes}
    inputs = dict.fromkeys(n for node in nodes for n in node.inputs if n and n not in made)
    return tuple(inputs), tuple(elementwise.group_outputs(nodes, graph))


def group_call(nodes: Sequence[Node], graph: Graph, function: str) -> Call:
    """What one fused loop for elementwise nodes of one result shape is emitted for.

    Its parameters are the outputs and inputs that :func:`group_interface` names, in its order.
    """
    inputs, outputs = group_interface(nodes, graph)
    return Call(
        function,
        tuple(nodes),
        graph,
        tuple(graph.values[n] for n in inputs),
        tuple(graph.values[n] for n in outputs),
    )
