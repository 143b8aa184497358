"""What was recognized in a graph, what its nodes run on, and why some run on general kernels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering import lanes
from sparsec.compiler.ops import OPS
from sparsec.compiler.passes.fuse_attention import why_not

_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))

#: Ops of which each one is named if it runs on a general kernel: there the time goes.
_HEAVY = {"softmax", *(name for name, op in OPS.items() if op.layer or op.terms)}


def fusions(graph: Graph) -> dict[str, int]:
    """How often each pattern was found in an optimized graph.

    Returns:
        Counts by name: ``attention int8`` (both products on bytes), ``attention float`` (neither),
        ``attention mixed``, ``layernorm``, ``gelu``, ``linear float``, ``linear int8``, and
        ``linear int8, sums`` (scales known at run time only, or weights of nine bits).
    """
    found: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op == "attention":
            prob = node.attrs["prob"]
            bytes_in = [graph.values[node.inputs[0]].dtype in _BYTES]
            bytes_in.append(prob.values[prob.outputs[0]].dtype in _BYTES)
            kind = "int8" if all(bytes_in) else "mixed" if any(bytes_in) else "float"
            found[f"attention {kind}"] += 1
        elif node.op in ("layernorm", "gelu"):
            found[node.op] += 1
        elif OPS[node.op].linear:
            kind = {"f32": "float", "i8": "int8"}[OPS[node.op].linear]
            sums = ", sums" if graph.values[node.output].dtype == np.int32 else ""
            found[f"linear {kind}{sums}"] += 1
    return dict(sorted(found.items()))


def general(graph: Graph) -> tuple[list[dict[str, str]], dict[str, int]]:
    """The nodes of an optimized graph that run on general, row-major kernels.

    Returns:
        Name, op and reason of each product, attention, softmax and normalization, and how many
        other nodes there are of each op.
    """
    choice = lanes.choose(graph)
    attention = why_not(graph)
    named: list[dict[str, str]] = []
    others: Counter[str] = Counter()
    for node in graph.nodes:
        if choice.has(node) or node.op == "reshape":
            continue
        if node.op in _HEAVY:
            reason = attention.get(node.output) or _reason(node, graph, choice)
            named.append({"name": node.source or node.output, "op": node.op, "reason": reason})
        else:
            others[node.op] += 1
    return named, dict(sorted(others.items()))


def _reason(node: Node, graph: Graph, choice: lanes.Choice) -> str:
    if OPS[node.op].layer:
        return lanes.misfit(node, graph, choice)
    if node.op == "softmax":
        return "it is not part of an attention that was recognized"
    if node.op in ("conv", "conv_integer"):
        return "its patches overlap, leave gaps or are in groups"
    constant = [name in graph.constants for name in node.inputs[:2]]
    if not any(constant):
        return "it multiplies two activations and is not part of an attention that was recognized"
    if node.op == "matmul" and constant[1]:
        return "its weights are no float32 matrix [K, N]"
    if constant[0]:
        return "its weights stand on the left"
    return "what follows is not a product with a constant scale"


def describe(graph: Graph) -> dict[str, Any]:
    """Both of the above, for ``sparsec inspect``."""
    named, others = general(graph)
    return {"fusions": fusions(graph), "general": named, "row_major": others}
