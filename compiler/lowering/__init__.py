"""Core IR -> kernels with concrete numbers: which nodes go where, how they are tiled and packed."""

from __future__ import annotations

import numpy as np

from sparsec.compiler.editor import Editor
from sparsec.compiler.ir import Graph
from sparsec.errors import UnsupportedError


def check_supported(graph: Graph) -> None:
    """Raise UnsupportedError with every node that no kernel covers."""
    from sparsec.compiler.lowering.general import supported

    bad = []
    for node in graph.nodes:
        reason = supported(node, graph)
        if reason is not None:
            bad.append((node.source or node.output, node.op, reason))
    if bad:
        listing = "\n".join(f"  {name} ({op}): {reason}" for name, op, reason in bad)
        raise UnsupportedError(f"{len(bad)} node(s) cannot be compiled:\n{listing}", bad)


def row_major_products(graph: Graph) -> Graph:
    """Linear layers that no lane kernel takes, as products with their weights the other way round.

    Columns side by side are what the general kernel multiplies fastest.
    """
    from sparsec.compiler.lowering import lanes

    taken = lanes.choose(graph).nodes
    edit = Editor(graph)
    for node in graph.nodes:
        weights = graph.constants.get(node.inputs[-1]) if node.op == "linear" else None
        if weights is not None and id(node) not in taken:
            turned = edit.constant(np.ascontiguousarray(weights.T), node.inputs[-1])
            made = edit.emit("matmul", [node.inputs[0], turned], source=node.source)
            edit.replace_uses(node.output, made)
    return edit.finish()
