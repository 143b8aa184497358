"""Optimization passes over the core IR.

Every pass takes a graph and returns an equivalent one.  A graph in which nothing matches compiles
all the same, through general kernels; the passes are what makes a transformer fast.
"""

from __future__ import annotations

from collections.abc import Callable

from sparsec.compiler.ir import Graph
from sparsec.compiler.passes.code_tables import code_tables
from sparsec.compiler.passes.eliminate_common import eliminate_common
from sparsec.compiler.passes.fold_constants import fold_constants
from sparsec.compiler.passes.fuse_attention import fuse_attention
from sparsec.compiler.passes.fuse_extremes import fuse_extremes
from sparsec.compiler.passes.fuse_gelu import fuse_gelu
from sparsec.compiler.passes.fuse_layernorm import fuse_layernorm
from sparsec.compiler.passes.masked_rows import masked_rows
from sparsec.compiler.passes.pad_rows import pad_rows
from sparsec.compiler.passes.permute_channels import permute_channels
from sparsec.compiler.passes.remove_dead import remove_dead
from sparsec.compiler.passes.remove_identities import remove_identities
from sparsec.compiler.passes.sink_layout import sink_layout

Pass = Callable[[Graph], Graph]

PIPELINE: tuple[tuple[str, Pass], ...] = (
    ("fold_constants", fold_constants),
    ("eliminate_common", eliminate_common),
    ("remove_identities", remove_identities),
    ("code_tables", code_tables),
    ("fuse_extremes", fuse_extremes),
    ("fuse_layernorm", fuse_layernorm),
    ("fuse_gelu", fuse_gelu),
    # Before layout ops part two uses of one mask ...
    ("masked_rows", masked_rows),
    # Layout ops meet the operands of the matrix products, where attention is found ...
    ("sink_layout", sink_layout),
    ("fold_moved", fold_constants),
    ("fuse_attention", fuse_attention),
    # ... and those around it cancel.
    ("sink_attention_layout", sink_layout),
    ("remove_leftovers", remove_identities),
    ("merge_leftovers", eliminate_common),
    ("pad_rows", pad_rows),
    ("remove_dead", remove_dead),
    # The last: what it aims at is what the kernels do with the weights.
    ("permute_channels", permute_channels),
)


def run(graph: Graph, on_pass: Callable[[int, str, Graph], None] | None = None) -> Graph:
    """Run the pipeline.

    Args:
        graph: a verified graph, as the frontend makes it.
        on_pass: called as ``on_pass(index, name, graph)`` after each pass, with the result.
    """
    for index, (name, transform) in enumerate(PIPELINE):
        graph = transform(graph)
        if on_pass is not None:
            on_pass(index, name, graph)
    return graph
