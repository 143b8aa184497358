"""Kernels of attention: one head of blocks of queries against all keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.codegen.lanes import byte_scores, masks
from sparsec.compiler.codegen.lanes.body import Body, LaneKernel, named
from sparsec.compiler.codegen.lanes.byte_scores import ByteScores
from sparsec.compiler.codegen.lanes.program import Accumulator, Program
from sparsec.compiler.ir import Dim, Graph, Node
from sparsec.compiler.lowering import tile_packing
from sparsec.compiler.lowering.attention import Shape
from sparsec.compiler.lowering.elements import BYTES, F32, S8, U8
from sparsec.compiler.lowering.tiling import PACK
from sparsec.interface import ELEMENTS
from sparsec.targets import Target, Tiles

Context = dict[str, Any]

#: Bits of 2^56: where queries and keys, or exponentials and values, are all smaller no sum of their
#: products leaves a float.
SPLIT_LIMIT = 0x5B800000

#: Bytes of a run of keys: where it begins and ends.
_RUN = 8


@dataclass(frozen=True, eq=False)
class _Form:
    """What an attention node multiplies.

    Attributes:
        node: the node.
        dtypes: of q, k and v.
        p_type: of the probabilities.
        shape: heads, and what scores and outputs are products of.
    """

    node: Node
    dtypes: tuple[np.dtype[Any], ...]
    p_type: np.dtype[Any]
    shape: Shape

    @staticmethod
    def of(body: Body, shape: Shape) -> _Form:
        """The form of a group's anchor."""
        node = body.group.nodes[0]
        prob: Graph = node.attrs["prob"]
        return _Form(
            node,
            dtypes=tuple(body.graph.values[n].dtype for n in node.inputs[:3]),
            p_type=prob.values[prob.outputs[0]].dtype,
            shape=shape,
        )

    @property
    def dim(self) -> int:
        """Channels of a head."""
        return self.shape.dim

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.shape.heads

    @property
    def qk(self) -> str:
        """What scores are products of."""
        return self.shape.qk

    @property
    def pv(self) -> str:
        """What outputs are products of."""
        return self.shape.pv

    @property
    def zeros(self) -> tuple[int, int, int]:
        """Zero points of q, k and v as the kernel sees them: q unsigned, k and v signed."""
        q, k, v = (int(self.node.attrs[key]) for key in ("q_zp", "k_zp", "v_zp"))
        q_type, k_type, v_type = self.dtypes
        return (
            q + (128 if q_type == S8 else 0),
            k - (128 if k_type == U8 else 0),
            v - (128 if v_type == U8 else 0),
        )


@dataclass(frozen=True)
class _Extra:
    """A tensor that the scores meet, as a mask.

    Attributes:
        lines: C statements ahead of its use.
        load: C expression of its elements for one key and a vector of queries.
        row: for the template, where those begin that do not depend on the query, and whether there
            is one for each key.
    """

    lines: tuple[str, ...]
    load: str
    row: Context


@dataclass(frozen=True)
class _Piece:
    count: int
    width: int


def attention_kernel(
    body: Body, target: Target, shape: Shape, scores: ByteScores | None
) -> LaneKernel:
    """The kernel of an attention group: one head of one or several blocks of 16 queries a call.

    Args:
        body: of the group.
        target: the ISA to emit for.
        shape: of the anchor, with products of bytes or float32, by vectors.
        scores: their form, where they are bytes.
    """
    form = _Form.of(body, shape)
    context, extras = _context(form, body, target)
    context["pieces"] = _pieces(form, target.tiles)
    template, scratch = "lanes/attention.c.j2", _scratch(body)
    if target.adds_pairs:
        context |= {"adds_pairs": True, "wide_at": scratch}
        scratch += _widened(form, body) if form.qk == "i8" else 0
    if scores is None:
        context |= {"kernel": "@NAME@", "key_mask": _key_mask(form, body, extras)}
    else:
        template = f"lanes/attention_{'words' if target.adds_pairs else 'bytes'}.c.j2"
        context |= _byte_scores(scores, extras, body, target)
    return _kernel(form, body, template, context, scratch, loops=scores is not None)


def packed_kernel(
    body: Body, target: Target, shape: Shape, matrix: bool, scores: ByteScores | None
) -> LaneKernel:
    """The same with keys and values packed first, for products of tiles or of bfloat16.

    Args:
        body, target, scores: as above.
        shape: of the anchor.
        matrix: products are of tiles.
    """
    form = _Form.of(body, shape)
    context, extras = _context(form, body, target)
    memory, size = _memory(shape, matrix)
    pieces = [(0, _Piece(form.dim // 4, 4))] if form.dim >= 4 else []
    if form.dim % 4:
        pieces.append((form.dim // 4 * 4, _Piece(1, form.dim % 4)))
    context |= {
        "bytes": scores is not None,
        "matrix": matrix,
        "memory": memory,
        "pieces": pieces if matrix else _pieces(form, target.tiles),
        "k_pack": PACK[shape.qk],
        "v_pack": PACK[shape.pv],
        "k_packs": shape.k_packs,
        "steps": shape.k_steps,
        "blocks": shape.key_blocks,
        "v_tiles": shape.v_tiles,
        "c_tiles": shape.c_tiles,
    }
    if scores is None:
        context |= {"kernel": "@NAME@"}
    else:
        context |= _byte_scores(scores, extras, body, target)
        size = max(size, _scratch(body))
    return _kernel(
        form, body, "lanes/attention_packed.c.j2", context, size, loops=True, matrix=matrix
    )


def floats_kernel(body: Body, target: Target, shape: Shape) -> LaneKernel:
    """The same for products of floats in parts on tiles.

    Args:
        body, target: as above.
        shape: of the anchor, with products of float32.
    """
    form = _Form.of(body, shape)
    context, extras = _context(form, body, target)
    memory, size = _floats_memory(shape, body)
    context |= {
        "kernel": "@NAME@_any",
        "key_mask": _key_mask(form, body, extras),
        "memory": memory,
        "pieces": _pieces(form, target.tiles),
        "products": tile_packing.PRODUCTS,
        "steps": -(-form.dim // tile_packing.INPUTS["f32"]),
        "v_tiles": _key_steps(shape),
        "c_tiles": shape.c_tiles,
        "limit": SPLIT_LIMIT,
    }
    return _kernel(
        form, body, "lanes/attention_floats.c.j2", context, size, loops=True, matrix=True
    )


def _context(form: _Form, body: Body, target: Target) -> tuple[Context, list[_Extra]]:
    """What all templates of attention need, and the tensors that scores meet."""
    args = body.args
    context: Context = {
        "qk": form.qk,
        "pv": form.pv,
        "dim": form.dim,
        "lanes": target.lanes,
        "channels": body.group.channels,
        "length": body.graph.tokens,
        "keep_q": form.qk == "i8" and form.dim // 4 <= target.tiles.query,
        "runs_at": _lists(body),
        "key_mask": None,
        "adds_pairs": False,
        **_operands(form, body),
    }
    scale = args.number(float(form.node.attrs["qk_scale"]), "qk_scale") if form.qk == "i8" else ""
    extras = [_extra(i, name, body) for i, name in enumerate(form.node.inputs[3:])]
    context |= _score(form, body, scale, extras) | _probability(form, body) | _epilogue(form, body)
    return context, extras


def _kernel(
    form: _Form,
    body: Body,
    template: str,
    context: Context,
    scratch: int,
    *,
    loops: bool,
    matrix: bool = False,
) -> LaneKernel:
    """The kernel that a template makes, with `scratch` bytes of memory."""
    unit = " on tiles" if matrix else ""
    title = f"attention{unit}, {form.heads} heads of {form.dim}, scores {form.qk}, output {form.pv}"
    suffix = ("_tiles" if matrix else "") + ("_bytes" if "byte_scores" in context else "")
    base = f"attention_{form.qk}_{form.pv}_{form.heads}x{form.dim}{suffix}"
    name, text = named(base, template, body.args, {**context, "title": title})
    packs = sum(-(-form.dim // PACK[kind]) for kind in (form.qk, form.pv))
    return LaneKernel(
        name,
        text,
        body.args,
        scratch=scratch,
        title=title,
        heads=form.heads,
        loops=loops,
        matrix=matrix,
        shape=f"{form.heads}x{form.dim}",
        work_key=form.heads * packs,
    )


def _lists(body: Body) -> int:
    """Bytes of scores, probabilities, what a zero point takes off the keys, and the byte lists."""
    keys = (body.graph.tokens + 3) // 4 * 4
    return keys * 16 * 4 + (keys // 4 + 1) * 16 * 4 + 4 * (keys + 32) + 2 * keys


def _scratch(body: Body) -> int:
    """Bytes that the kernels need whose keys and values are not packed."""
    return -(-(_lists(body) + 2 * _runs(body)) // 64) * 64


def _runs(body: Body) -> int:
    """Bytes of the most runs of keys that a sequence can have."""
    return _RUN * ((body.graph.tokens + 3) // 4 // 2 + 1)


def _widened(form: _Form, body: Body) -> int:
    """Bytes of a head's keys and of 16 queries, once their bytes are widened to 16 bits."""
    return ((body.graph.tokens + 27) // 8 * 8 + 16) * form.dim * 2


def _memory(shape: Shape, matrix: bool) -> tuple[dict[str, int], int]:
    """Where what ``attention_packed.c.j2`` keeps begins in its scratch memory, and bytes of all."""
    blocks = shape.key_blocks
    sizes = {
        "K": blocks * (shape.k_steps * 16 if matrix else shape.k_packs) * 64,
        "V": shape.c_tiles * shape.v_tiles * 1024,
        "S": blocks * 1024,
        "E": blocks * 1024,
        "P": shape.v_tiles * 1024,
        "sums": shape.c_tiles * 1024,
        "Q": shape.k_steps * 1024,
        "k_fix": blocks * 64,
        "keep": blocks * 16,
        "block": blocks * 2,
    }
    return _places(sizes)


def _key_steps(shape: Shape) -> int:
    """Tiles of 32 keys."""
    return -(-shape.tokens // tile_packing.INPUTS["f32"])


def _floats_memory(shape: Shape, body: Body) -> tuple[dict[str, int], int]:
    """Where what ``attention_floats.c.j2`` keeps begins in its scratch memory, and bytes of all."""
    keys = _key_steps(shape)
    channels = -(-shape.dim // tile_packing.INPUTS["f32"])
    step = tile_packing.PARTS * tile_packing.BYTES
    return _places(
        {
            "K": 2 * keys * channels * step,
            "V": shape.c_tiles * keys * step,
            "Q": 2 * channels * step,
            "P": 2 * keys * step,
            "S": 2 * keys * 2048,
            "E": 2 * keys * 2048,
            "sums": 2 * shape.c_tiles * 1024,
            "block": 2 * (2 * keys + 2),
            "where": 2 * 2 * keys,
            "kept": _runs(body),
            "vectors": _scratch(body),
        }
    )


def _places(sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """Where pieces of memory of these bytes begin, one after the other, and bytes of all."""
    places, total = {}, 0
    for name, size in sizes.items():
        places[name] = total
        total += -(-size // 64) * 64
    return places, total


def _pieces(form: _Form, tiles: Tiles) -> list[tuple[int, _Piece]]:
    """A head's channels in pieces whose sums are in registers together: (first channel, piece)."""
    width = tiles.out_i8 if form.pv == "i8" else tiles.out_f32
    pieces = [(0, _Piece(form.dim // width, width))] if form.dim >= width else []
    at = form.dim - form.dim % width
    while at < form.dim:
        step = min(4, form.dim - at)
        pieces.append((at, _Piece(1, step)))
        at += step
    return pieces


def _operands(form: _Form, body: Body) -> Context:
    """Where q, k and v are, and their zero points."""
    args = body.args
    # One tensor may be several of them.
    q, k, v = (body.choice.root(name) for name in form.node.inputs[:3])
    q_type, k_type, v_type = form.dtypes
    context: Context = {
        "q": args.input((q, "panel_u8" if form.qk == "i8" else "lane"), q_type, "q"),
        "k": args.input((k, "panel_s8" if form.qk == "i8" else "lane"), k_type, "k"),
        "v": args.input((v, "byte_s8" if form.pv == "i8" else "lane"), v_type, "v"),
    }
    q_zp, k_zp, v_zp = form.zeros
    if form.qk == "i8":
        args.integer(q_zp, "q_zero")
        args.integer(k_zp, "k_zero")
    if form.pv == "i8":
        args.integer(v_zp, "v_zero")
    return context | {"q_zp": bool(q_zp), "k_zp": bool(k_zp), "v_zp": bool(v_zp)}


def _extra(number: int, name: str, body: Body) -> _Extra:
    """How a kernel reads one of the tensors that scores meet."""
    graph, args = body.graph, body.args
    value = graph.values[name]
    ctype = ELEMENTS[value.dtype.name].c_type
    if name in graph.constants:
        pointer = args.vector(graph.constants[name], "extra")
    else:
        pointer = args.input((body.choice.root(name), "flat"), value.dtype, "extra")
    shape = (1,) * (4 - len(value.shape)) + value.shape
    element = f"e{number}[{_index(shape, ('seq', 'head', 'qi[i]', 'kv'))}]"
    # Truth values are all bits of a lane, or none.
    is_float = value.dtype == F32
    lane = element if is_float else f"-(int32_t)({element} != 0)"
    vector = "vf" if is_float else "vi"
    lines = [f"const {ctype} *const e{number} = {pointer};"]
    load = f"{vector}_set1({lane})"
    if shape[2] != 1:
        kind = "float" if is_float else "int32_t"
        lines.append(f"{kind} g{number}[VL] __attribute__((aligned(64)));")
        lines += ["for (int i = 0; i < VL; i++)", f"    g{number}[i] = {lane};"]
        load = f"{vector}_load(g{number})"
    row = _index(shape, ("seq", "head", "", ""))
    return _Extra(tuple(lines), load, {"pointer": pointer, "index": row, "keys": shape[3] != 1})


def _index(shape: Sequence[Dim], names: Sequence[str]) -> str:
    """C expression of an element's place, "" being 0; extents of 1 broadcast."""
    terms: list[str] = []
    stride = 1
    for extent, which in zip(reversed(shape), reversed(names), strict=True):
        if extent != 1 and which:
            terms.insert(0, f"{which} * {stride}" if stride > 1 else which)
        stride *= extent if isinstance(extent, int) else 1
    return " + ".join(terms) or "0"


def _score(form: _Form, body: Body, scale: str, extras: Sequence[_Extra]) -> Context:
    """What becomes of a product of a query and a key, `scale` times which is the score."""
    score: Graph = form.node.attrs["score"]
    first = f"(vf_cvt(acc) * vf_set1({scale}))" if scale else "acc"
    leaves = dict(zip(score.inputs, [first, *(extra.load for extra in extras)], strict=True))
    program = Program(score, body.args, leaves.get, prefix="score_")
    result = program.demand(score.outputs[0])
    ahead = [line for extra in extras for line in extra.lines]
    return {"score": [*ahead, *program.lines], "score_result": result}


def _probability(form: _Form, body: Body) -> Context:
    """What becomes of a probability: bytes are unsigned."""
    prob: Graph = form.node.attrs["prob"]
    program = Program(prob, body.args, {prob.inputs[0]: "x"}.get, prefix="prob_")
    result = program.demand(prob.outputs[0])
    if form.p_type == S8:
        result = f"({result} + 128)"
    scale = byte_scores.probability_scale(prob) if form.pv == "i8" else None
    share = "" if scale is None else f"vf_set1({body.args.number(1.0 / scale, 'prob_share')})"
    return {
        "prob": program.lines,
        "prob_result": result,
        "prob_share": share,
        "vanishes": _vanishes(prob, form),
    }


def _vanishes(prob: Graph, form: _Form) -> bool:
    """Whether a probability of 0 adds nothing to an output."""
    nodes = masks.path(prob, prob.producers(), prob.outputs[0])
    if nodes is None:
        return False
    zero = masks.run(nodes, prob.inputs[0], np.zeros(1, np.float32), prob)
    return bool(zero[0] == (np.iinfo(form.p_type).min if form.p_type in BYTES else 0))


def _key_mask(form: _Form, body: Body, extras: Sequence[_Extra]) -> Context | None:
    """What the kernel needs to leave out keys that are masked, or None where it cannot."""
    mask = masks.find(form.node, body.graph)
    if mask is None or not extras[mask.extra].row["keys"]:
        return None
    dtype = body.graph.values[form.node.inputs[3 + mask.extra]].dtype
    added = "m[i]"
    if mask.constant is not None:
        masked = f"m[i] {'!=' if mask.when else '=='} 0"
        added = f"{masked} ? {body.args.number(mask.constant, 'mask_value')} : 0.0f"
    scale = mask.scale
    if form.qk == "i8":  # no product of bytes is larger
        scale *= abs(float(form.node.attrs["qk_scale"])) * form.dim * 255 * 255
    body.args.number(scale, "mask_scale")
    return extras[mask.extra].row | {
        "c_type": ELEMENTS[dtype.name].c_type,
        "added": added,
        "drop": f"{masks.MASKS}f",
    }


def _epilogue(form: _Form, body: Body) -> Context:
    """What becomes of an output.

    Raises:
        ValueError: heads have other channels than packs of 4, and packs are wanted.
    """
    output = form.node.output
    leaf, sums = {output: "acc"}, {}
    if form.pv == "i8":
        scale = float(form.node.attrs["pv_scale"])
        leaf = {output: f"(vf_cvt(acc) * vf_set1({body.args.number(scale, 'pv_scale')}))"}
        most = np.int64(body.graph.tokens) * 255 * 255
        sums = {output: Accumulator("acc", np.float32(scale), -most, most)}
    program = body.program(leaf, sums)
    seen = body.watch(program)
    panels = body.stores(program, masked=True)
    if panels and form.dim % 4:
        raise ValueError(f"{form.node.source}: heads of {form.dim} channels cannot be packed")
    return {"epilogue": program.lines, "panels": panels, "seen": seen}


def _byte_scores(
    scores: ByteScores, extras: Sequence[_Extra], body: Body, target: Target
) -> Context:
    """What the kernel for scores that stay bytes needs besides."""
    args = body.args
    args.number(scores.factor, "byte_step")
    args.integer(scores.zp, "byte_zero")
    if scores.mask is not None:
        args.number(scores.drop, "drop")
    args.number(1.0 / scores.prob_scale, "byte_share")
    args.vector(byte_scores.decay_table(scores.decay, target.vectors), "decay")
    return {
        "kernel": "@NAME@_any",
        "byte_scores": True,
        "mask": None if scores.mask is None else extras[scores.mask].row,
        "pair": target.tiles.keys,
    }
