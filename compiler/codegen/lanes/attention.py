"""Kernels of attention: one head of a block of queries against all keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.codegen.lanes import byte_scores
from sparsec.compiler.codegen.lanes.body import Body, LaneKernel, named
from sparsec.compiler.codegen.lanes.byte_scores import ByteScores
from sparsec.compiler.codegen.lanes.program import Accumulator, Program
from sparsec.compiler.ir import Dim, Graph, Node
from sparsec.compiler.lowering.elements import BYTES, F32, S8, U8
from sparsec.interface import ELEMENTS
from sparsec.targets import Target


@dataclass(frozen=True)
class _Piece:
    count: int
    width: int


def _index(shape: Sequence[Dim], names: Sequence[str]) -> str:
    """C expression of an element's place, "" being 0; extents of 1 broadcast."""
    terms: list[str] = []
    stride = 1
    for extent, which in zip(reversed(shape), reversed(names), strict=True):
        if extent != 1 and which:
            terms.insert(0, f"{which} * {stride}" if stride > 1 else which)
        stride *= extent if isinstance(extent, int) else 1
    return " + ".join(terms) or "0"


def products(node: Node, graph: Graph) -> tuple[str, str]:
    """The types, "i8" or "f32", of the products that make scores, and that make the result."""
    prob: Graph = node.attrs["prob"]
    types = (graph.values[node.inputs[0]].dtype, prob.values[prob.outputs[0]].dtype)
    qk, pv = ("i8" if dtype in BYTES else "f32" for dtype in types)
    return qk, pv


def attention_kernel(body: Body, target: Target, found: ByteScores | None) -> LaneKernel:
    """The kernel of an attention group: one head of one or several blocks of 16 queries a call.

    Args:
        body: of the group.
        target: the ISA to emit for.
        found: the form of its scores, where they are bytes.
    """
    group, graph, args = body.group, body.graph, body.args
    node = group.nodes[0]
    attrs = node.attrs
    heads = int(attrs["heads"])
    dim = group.channels // heads
    score: Graph = attrs["score"]
    prob: Graph = attrs["prob"]
    q, k, v = (body.choice.root(n) for n in node.inputs[:3])
    dtypes = [graph.values[n].dtype for n in (q, k, v)]
    p_type = prob.values[prob.outputs[0]].dtype
    qk, pv = products(node, graph)
    # One tensor may be several of them.
    at_q = args.input((q, "panel_u8" if qk == "i8" else "lane"), dtypes[0], "q")
    at_k = args.input((k, "panel_s8" if qk == "i8" else "lane"), dtypes[1], "k")
    at_v = args.input((v, "byte_s8" if pv == "i8" else "lane"), dtypes[2], "v")
    zero = [int(attrs[key]) for key in ("q_zp", "k_zp", "v_zp")]
    q_zp = zero[0] + (128 if dtypes[0] == S8 else 0)
    k_zp = zero[1] - (128 if dtypes[1] == U8 else 0)
    v_zp = zero[2] - (128 if dtypes[2] == U8 else 0)
    context: dict[str, Any] = {
        "qk": qk,
        "pv": pv,
        "q": at_q,
        "k": at_k,
        "v": at_v,
        "dim": dim,
        "channels": group.channels,
        "length": graph.tokens,
        "keep_q": qk == "i8" and dim // 4 <= target.tiles.query,
        "q_zp": bool(q_zp),
        "k_zp": bool(k_zp),
    }
    if qk == "i8":
        args.integer(q_zp, "q_zero")
        args.integer(k_zp, "k_zero")
    if pv == "i8":
        args.integer(v_zp, "v_zero")
    # What happens to a score; extras are read for each key (and query, where they depend on it).
    first = {score.inputs[0]: "acc"}
    if qk == "i8":
        scale = args.number(float(attrs["qk_scale"]), "qk_scale")
        first = {score.inputs[0]: f"(vf_cvt(acc) * vf_set1({scale}))"}
    loads: dict[str, str] = {}
    prefix: list[str] = []
    masks: list[dict[str, Any]] = []
    for i, (inner, outer) in enumerate(zip(score.inputs[1:], node.inputs[3:], strict=True)):
        extra = graph.values[outer]
        ctype = ELEMENTS[extra.dtype.name].c_type
        if outer in graph.constants:
            pointer = args.vector(graph.constants[outer], "extra")
        else:
            pointer = args.input((body.choice.root(outer), "flat"), extra.dtype, "extra")
        shape = (1,) * (4 - len(extra.shape)) + extra.shape
        index = _index(shape, ("seq", "head", "qi[i]", "kv"))
        # For those that do not depend on the query: where its keys begin, and whether it has any.
        row = _index(shape, ("seq", "head", "", ""))
        masks.append({"pointer": pointer, "index": row, "keys": shape[3] != 1})
        prefix.append(f"const {ctype} *const e{i} = {pointer};")
        is_float = extra.dtype == F32
        convert = "" if is_float else "-(int32_t)"
        if shape[2] == 1:
            test = f"e{i}[{index}]" if is_float else f"-(int32_t)(e{i}[{index}] != 0)"
            loads[inner] = f"v{'f' if is_float else 'i'}_set1({test})"
        else:
            kind = "float" if is_float else "int32_t"
            each = f"e{i}[{index}]" if is_float else f"{convert}(e{i}[{index}] != 0)"
            prefix.append(f"{kind} g{i}[VL] __attribute__((aligned(64)));")
            prefix += ["for (int i = 0; i < VL; i++)", f"    g{i}[i] = {each};"]
            loads[inner] = f"v{'f' if is_float else 'i'}_load(g{i})"
    inside = Program(score, args, {**first, **loads}.get, prefix="score_")
    result = inside.demand(score.outputs[0])
    context |= {"score": [*prefix, *inside.lines], "score_result": result}
    after = Program(prob, args, {prob.inputs[0]: "x"}.get, prefix="prob_")
    result = after.demand(prob.outputs[0])
    if p_type == S8:
        result = f"({result} + 128)"
    context |= {"prob": after.lines, "prob_result": result}
    leaf = {node.output: "acc"}
    sums: dict[str, Accumulator] = {}
    if pv == "i8":
        scale = args.number(float(attrs["pv_scale"]), "pv_scale")
        leaf[node.output] = f"(vf_cvt(acc) * vf_set1({scale}))"
        most = np.int64(graph.tokens) * 255 * 255
        sums[node.output] = Accumulator("acc", np.float32(attrs["pv_scale"]), -most, most)
    prog = body.program(leaf, sums)
    panels = body.stores(prog, masked=True)
    width = target.tiles.out_i8 if pv == "i8" else target.tiles.out_f32
    pieces = [(0, _Piece(dim // width, width))] if dim >= width else []
    rest = dim % width
    at = dim - rest
    while rest:
        step = 4 if rest >= 4 else rest
        pieces.append((at, _Piece(1, step)))
        at, rest = at + step, rest - step
    if panels and dim % 4:
        raise ValueError(f"{node.source}: heads of {dim} channels cannot be packed")
    title = f"attention, {heads} heads of {dim}, scores {qk}, output {pv}"
    context |= {"pieces": pieces, "panels": panels, "epilogue": prog.lines, "title": title}
    base = f"attention_{qk}_{pv}_{heads}x{dim}"
    if found is None:
        name, text = named(base, "lanes/attention.c.j2", args, {**context, "kernel": "@NAME@"})
    else:
        args.number(found.factor, "byte_step")
        args.integer(found.zp, "byte_zero")
        if found.mask is not None:
            args.number(found.drop, "drop")
        args.number(1.0 / found.prob_scale, "byte_share")
        args.vector(byte_scores.decay_table(found.decay, target.vectors), "decay")
        context |= {
            "kernel": "@NAME@_any",
            "mask": None if found.mask is None else masks[found.mask],
            "pair": target.tiles.keys,
            "v_zp": bool(v_zp),
        }
        name, text = named(f"{base}_bytes", "lanes/attention_bytes.c.j2", args, context)
    keys = (graph.tokens + 3) // 4 * 4
    scratch = keys * 16 * 4 + (keys // 4 + 1) * 16 * 4 + 4 * (keys + 32) + 2 * keys
    work = heads * dim // (4 if qk == "i8" else 1) + heads * dim // (4 if pv == "i8" else 1)
    return LaneKernel(
        name,
        text,
        args,
        scratch,
        title,
        heads=heads,
        loops=found is not None,
        shape=f"{heads}x{dim}",
        work_key=work,
    )
