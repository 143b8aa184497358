"""Kernels of map groups, and of values that leave the lanes."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsec.compiler.codegen.lanes.arguments import Args
from sparsec.compiler.codegen.lanes.body import Body, LaneKernel, named
from sparsec.compiler.ir import Graph
from sparsec.compiler.lowering import lanes
from sparsec.compiler.lowering.elements import BYTES
from sparsec.interface import ELEMENTS


def map_kernel(body: Body) -> LaneKernel:
    """The kernel of a map group."""
    group, graph, args = body.group, body.graph, body.args
    norm = group.norm
    context: dict[str, Any] = {"norm": norm is not None, "channels": group.channels}
    if norm is not None:
        root = body.choice.root(norm.inputs[0])
        before = body.program({})
        context |= {"normalized": before.demand(norm.inputs[0]), "before": before.lines}
        context["computed"] = len(before.lines) > 1 or bool(body.fields)
        args.number(float(norm.attrs["eps"]), "eps")
        after = body.program({})
        gamma = after.constant(graph.constants[norm.inputs[1]], "gamma")
        expression = f"(y * {gamma})"
        if len(norm.inputs) > 2 and norm.inputs[2]:
            beta = after.constant(graph.constants[norm.inputs[2]], "beta")
            expression = f"vf_fma(y, {gamma}, {beta})"
        leaf = {norm.output: expression, root: "x"}
        after = body.program(leaf, inexact=(norm.output,))
    else:
        after = body.program({})
    context["seen"] = body.watch(after)
    panels = body.stores(after, masked=False)
    order = group.order
    ordered = bool(panels) and order is not None and bool((np.diff(order) != 1).any())
    if ordered and order is not None:
        args.vector(order.astype(np.uint16), "order")
    ops = ", ".join(n.op for n in group.nodes) or "copy"
    title = f"{group.channels} channels: {ops}"
    context |= {"title": title, "gathers": list(body.fields.values()), "panels": panels}
    context |= {"ordered": ordered, "epilogue": after.lines}
    base = f"map_{'layernorm_' if norm is not None else ''}{group.channels}"
    name, text = named(base, "lanes/map.c.j2", args, context)
    scratch = 4 * 16 * body.padded if context.get("computed") else 0
    return LaneKernel(name, text, args, scratch, title, shape=str(group.channels))


def unpack_kernel(name: str, graph: Graph, rows: lanes.Rows) -> LaneKernel:
    """Moves a value from lanes to its row-major buffer."""
    dtype = graph.values[name].dtype
    args = Args()
    args.input((name, "byte" if dtype in BYTES else "lane"), dtype, "x")
    args.output((name, "flat"), dtype)
    title = f"{rows.channels} channels: rows of {dtype.name} out of lanes"
    c_type = ELEMENTS[dtype.name].c_type
    context = {"type": c_type, "channels": rows.channels, "title": title}
    base = f"unpack_{dtype.name}_{rows.channels}"
    function, text = named(base, "lanes/unpack.c.j2", args, context)
    return LaneKernel(function, text, args, 0, title)
