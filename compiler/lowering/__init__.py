"""Core IR -> kernels with concrete numbers: which nodes go where, how they are tiled and packed."""

from __future__ import annotations

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
