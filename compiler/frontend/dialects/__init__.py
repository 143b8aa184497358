"""The dialects: how exporters write one and the same quantized or float linear layer.

Each file is a list of rewrite rules on the core IR.  :data:`STAGES` is the whole order.  A new
dialect is one file and one line here.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.compiler.editor import Rule, rewrite
from sparsec.compiler.frontend.dialects import (
    dynamic,
    fold,
    matmul_integer,
    qdq,
)
from sparsec.compiler.frontend.dialects import (
    float as float_dialect,
)
from sparsec.compiler.frontend.dialects.detect import dialect_name
from sparsec.compiler.ir import Graph

__all__ = ["STAGES", "canonicalize", "dialect_name"]

STAGES: Sequence[tuple[str, Sequence[Rule]]] = (
    ("move dequantize after layout", qdq.MOVE),
    ("matmul_integer", matmul_integer.RULES),
    ("dynamic", dynamic.RULES),
    ("qdq", qdq.RULES),
    ("fold constants", fold.RULES),
    ("float", float_dialect.RULES),
)


def canonicalize(graph: Graph) -> Graph:
    """Bring every dialect to the same core ops: ``qlinear``, ``linear``, ``dequantize(gather)``."""
    for _, rules in STAGES:
        graph = rewrite(graph, rules)
    return graph
