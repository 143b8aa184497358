"""Kernels of map groups, and of values that leave the lanes."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsec.compiler.codegen.lanes.body import Body, LaneKernel, function, named, panel_params
from sparsec.compiler.codegen.lanes.program import Args
from sparsec.compiler.ir import Graph
from sparsec.compiler.lowering import lanes
from sparsec.compiler.lowering.elements import BYTES
from sparsec.interface import ELEMENTS


def map_kernel(body: Body) -> LaneKernel:
    """The kernel of a map group."""
    group, graph, args = body.group, body.graph, body.args
    norm = group.norm
    context: dict[str, Any] = {"norm": norm is not None, "channels": group.channels}
    helpers = ""
    if norm is not None:
        root = body.choice.root(norm.inputs[0])
        pre = body.program({})
        result = pre.demand(norm.inputs[0])
        helpers += function(
            "vf @NAME@_pre(const lane_args *a, const @NAME@_rows *r, int64_t blk, int s, "
            "int64_t c)",
            ["(void)a; (void)r; (void)blk; (void)s; (void)c;", *pre.lines, f"return {result};"],
        )
        context["cs_eps"] = args.scalar(float(norm.attrs["eps"]))
        post = body.program({})
        gamma = post.constant(graph.constants[norm.inputs[1]])
        expression = f"(y * {gamma})"
        if len(norm.inputs) > 2 and norm.inputs[2]:
            beta = post.constant(graph.constants[norm.inputs[2]])
            expression = f"vf_fma(y, {gamma}, {beta})"
        leaf = {norm.output: expression, root: "x"}
        post = body.program(leaf, inexact=(norm.output,))
    else:
        context["cs_eps"] = -1
        post = body.program({})
    panels = body.stores(post, masked=False)
    helpers += function(
        "void @NAME@_ep(const lane_args *a, const @NAME@_rows *r, int64_t blk, int s, int64_t c, "
        f"vf x, vf y{panel_params(len(panels))})",
        ["(void)a; (void)r; (void)blk; (void)s; (void)c; (void)x; (void)y;", *post.lines],
    )
    gathers = list(body.fields.values())
    struct = "typedef struct {\n"
    struct += "".join(f"    const {g['ctype']} *{g['field']}[VL];\n" for g in gathers)
    struct += "" if gathers else "    char none;\n"
    struct += "} @NAME@_rows;\n"
    order = group.order
    context["cv_order"] = -1
    if panels and order is not None and (np.diff(order) != 1).any():
        context["cv_order"] = args.vector(order.astype(np.uint16))
    ops = ", ".join(n.op for n in group.nodes) or "copy"
    title = f"{group.channels} channels: {ops}"
    name, text = named(
        f"map_{'layernorm_' if norm is not None else ''}{group.channels}",
        "lanes/map.c.j2",
        {**context, "gathers": gathers, "panels": panels, "comment": title},
        struct + helpers,
    )
    scratch = 4 * 16 * body.padded if norm is not None else 0
    return LaneKernel(name, text, args, scratch, title, shape=str(group.channels))


def unpack_kernel(name: str, graph: Graph, rows: lanes.Rows) -> LaneKernel:
    """Moves a value from lanes to its row-major buffer."""
    dtype = graph.values[name].dtype
    args = Args()
    source = args.input((name, "byte" if dtype in BYTES else "lane"))
    target = args.output((name, "flat"))
    title = f"{rows.channels} channels: rows of {dtype.name} out of lanes"
    name_of, text = named(
        f"unpack_{dtype.name}_{rows.channels}",
        "lanes/unpack.c.j2",
        {
            "ctype": ELEMENTS[dtype.name].c_type,
            "channels": rows.channels,
            "comment": title,
            "source": source,
            "target": target,
        },
        "",
    )
    return LaneKernel(name_of, text, args, 0, title)
