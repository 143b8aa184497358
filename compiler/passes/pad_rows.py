"""Give a layer as many rows as the model's other layers have, so that it runs with rows in lanes.

    x [B,P,K] ── layer ── elementwise ── y [B,P,N]
    ->
    x ─┬─ concat [B,S,K] ── layer ── elementwise [B,S,N] ── slice ── y
    0 ─┘

A vision transformer has a row for every patch, and behind the embedding of the patches one or two
rows of its own.  The added rows are zeros, of which nothing is read.
"""

from __future__ import annotations

import numpy as np

from sparsec.compiler.editor import Match, rewrite
from sparsec.compiler.ir import BATCH, Graph, Node
from sparsec.compiler.ops import OPS


def pad_rows(graph: Graph) -> Graph:
    """Apply the rule of this file until it does not fire."""
    # Rows of text are skipped where they are padding: an added one would have to be told apart.
    return graph if graph.length else rewrite(graph, [_pad])


def _pad(m: Match, node: Node) -> bool:
    """Fire where the added rows are an eighth of the layer's at most."""
    if not OPS[node.op].linear or node.inputs[1] not in m.graph.constants:
        return False
    shape, full = m.type(node.inputs[0]).shape, m.graph.tokens
    if len(shape) != 3 or shape[0] != BATCH or not isinstance(shape[1], int):
        return False
    rows = shape[1]
    if not rows < full <= rows + max(1, rows // 8):
        return False
    chain = _behind(m, node)
    edit, source = m.edit, node.source
    zero = edit.constant(np.zeros((1, 1, 1), m.type(node.inputs[0]).dtype), "zero_rows")
    more = edit.emit("expand", [zero], source=source, shape=(BATCH, full - rows, shape[2]))
    made = {node.inputs[0]: edit.emit("concat", [node.inputs[0], more], source=source, axis=1)}
    for step in chain:
        operands = [made.get(name, name) for name in step.inputs]
        made[step.output] = edit.emit(step.op, operands, source=step.source, **step.attrs)
    end = chain[-1].output
    out = edit.emit(
        "slice", [made[end]], source=source, starts=(0,), ends=(rows,), axes=(1,), steps=(1,)
    )
    edit.replace_uses(end, out)
    return True


def _behind(m: Match, layer: Node) -> list[Node]:
    """The layer and the elementwise work that nothing but its rows goes into."""
    chain = [layer]
    shape = m.type(layer.output).shape
    while True:
        end = chain[-1].output
        node = m.only_user(end)
        if node is None or not OPS[node.op].elementwise or m.type(node.output).shape != shape:
            return chain
        others = [m.type(name).shape for name in node.inputs if name and name != end]
        if any(extent != 1 for other in others for extent in other[:-1]):
            return chain
        chain.append(node)
