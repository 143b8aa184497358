"""Decisions, no C: which nodes run where, how layers are tiled and packed; codegen prints it."""

from __future__ import annotations

import numpy as np

from sparsec.compiler.editor import Editor
from sparsec.compiler.ir import Graph
from sparsec.compiler.lowering import lanes
from sparsec.compiler.ops import OPS


def row_major_products(graph: Graph) -> Graph:
    """Linear layers that no lane kernel takes, as products with their weights the other way round.

    Columns side by side are what the general kernel multiplies fastest.
    """
    choice = lanes.choose(graph)
    edit = Editor(graph)
    for node in graph.nodes:
        weights = graph.constants.get(node.inputs[-1]) if OPS[node.op].linear == "f32" else None
        if weights is not None and not choice.has(node):
            turned = edit.constant(np.ascontiguousarray(weights.T), node.inputs[-1])
            made = edit.emit("matmul", [node.inputs[0], turned], source=node.source)
            edit.replace_uses(node.output, made)
    return edit.finish()
