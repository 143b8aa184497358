"""Kernels of linear layers: weights as packs, the rest of the group as an epilogue."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsec.compiler.codegen.lanes.arguments import Args
from sparsec.compiler.codegen.lanes.body import Body, LaneKernel, named
from sparsec.compiler.codegen.lanes.program import Accumulator
from sparsec.compiler.codegen.lanes.requantize import accumulator_bounds
from sparsec.compiler.lowering import tile_packing
from sparsec.compiler.lowering.linear import DENSE_CHANNELS, SLAB_QUADS, LinearPlan
from sparsec.compiler.lowering.tile_packing import BYTES, CHANNELS, PARTS, tile_count
from sparsec.compiler.lowering.tiling import MATRIX_CHANNELS, PACK
from sparsec.compiler.lowering.words import Words
from sparsec.targets import Matrix, Target

#: How far ahead of its use a sparse weight stream is fetched: the time that memory takes to answer,
#: at the few bytes a cycle that the loop reads.
PREFETCH_BYTES = 2048


#: Blocks of rows that meet the weights of a dense layer of 16-bit sums each time they are read:
#: their sums take half of the first-level cache.
SWEEP = 4

#: Rows that take a layer as long as its weights take to arrive, by what computes it: few for
#: vectors, which compute slowly.  On an Emerald Rapids core, weights from the third-level cache,
#: tiles took 128, 130, 172 and 243 us for 1, 2, 4 and 8 blocks of rows (3072 to 768 channels), of
#: masks 67, 78, 130 and 209.
WEIGHTS_ROWS = {"vectors": 4, "tiles": 90, "masked": 45}

#: By products: what adds those of a pack to the sums.
DOT = {"i8": "vi_dot4", "f32": "vf_fma_acc", "bf16": "vf_dot2"}


def _on_tiles(plan: LinearPlan, matrix: Matrix) -> dict[str, Any]:
    """How products of tiles go through a layer."""
    return {
        "steps": tile_count(plan.k, plan.kind),
        "chunk": _chunk_steps(plan),
        "products": _products(plan),
        "parts": plan.parts,
        "sweep": matrix.sweep,
        "listed": plan.listed,
        "granule": plan.granule,
        "sums_bytes": _sums_of_tiles(plan, matrix),
    }


def _products(plan: LinearPlan) -> tuple[tuple[int, int, str], ...]:
    """Products of parts of floats."""
    return tile_packing.PRODUCTS if plan.parts > 1 else tile_packing.WHOLE_PRODUCTS


def _chunk_steps(plan: LinearPlan) -> int:
    """Tiles of inputs in a chunk."""
    return plan.chunk_packs * PACK[plan.kind] // tile_packing.INPUTS[plan.kind]


def _sums_of_tiles(plan: LinearPlan, matrix: Matrix) -> int:
    """Bytes of sums of tiles that wait, for their epilogue and for the next chunk."""
    pairs = -(-matrix.sweep // 2)
    groups = -(-plan.n // MATRIX_CHANNELS) if plan.kind == "f32" else 1
    return 4 * MATRIX_CHANNELS * 32 * (1 + (pairs * groups if plan.chunks > 1 else 0))


def _panels(plan: LinearPlan, target: Target) -> int:
    """Bytes of activations that a kernel packs itself: floats, as pairs of bfloat16."""
    if plan.matrix and plan.kind != "i8":
        assert target.matrix is not None
        steps = tile_count(plan.k, plan.kind)
        if plan.kind == "bf16":
            return target.matrix.sweep * steps * BYTES
        # Of a chunk, or all of two blocks.
        tiles = max(target.matrix.sweep * min(steps, _chunk_steps(plan)), 2 * steps)
        return tiles * PARTS * BYTES
    if plan.kind != "bf16":
        return 0
    return max(plan.tiles) * plan.packs * 64


def _waiting(plan: LinearPlan, panels: bool, target: Target) -> int:
    """Bytes of sums that wait, of tiles that are made of masks, of weights that are expanded."""
    if plan.matrix:
        assert target.matrix is not None
        step = MATRIX_CHANNELS // CHANNELS * BYTES
        chunk = _chunk_steps(plan) * step
        # Those of two chunks, or of three steps.
        made = max(2 * chunk, 3 * step) * plan.parts
        made = made if plan.kind == "f32" else chunk if plan.granule else 0
        return _sums_of_tiles(plan, target.matrix) + made
    if plan.coded:
        return 4 * 4 * plan.coded.inputs
    if plan.words:
        return SWEEP * 16 * 4 * 4 * SLAB_QUADS
    if not plan.tiles:
        return 4 * 2 * 16 * DENSE_CHANNELS
    quads = plan.quads if plan.chunks > 1 else SLAB_QUADS if panels and plan.order.size else 0
    return 4 * max(plan.tiles) * target.unit * 4 * quads


def _in_words(words: Words, args: Args) -> dict[str, Any]:
    """How products that are added in 16 bits go through a layer."""
    rests = len(words.rest) > 0
    if rests:
        args.vector(words.rest, "rest")
        args.vector(words.at, "rest_at")
        args.vector(words.channel, "rest_of")
        args.vector(words.start, "rest_start")
    groups = -(-words.main.shape[1] // words.depth)
    moved = int(words.moves.size > 0)
    return {"depth": words.depth, "groups": groups, "moved": moved, "rests": rests, "sweep": SWEEP}


def linear_kernel(body: Body, plan: LinearPlan, target: Target) -> LaneKernel:
    """The kernel of a linear group, one function for each tile height."""
    group, graph, args = body.group, body.graph, body.args
    anchor = group.nodes[0]
    x = body.choice.root(anchor.inputs[0])
    args.input((x, "panel_u8" if plan.kind == "i8" else "lane"), graph.values[x].dtype, "x")
    args.vector(plan.weights, "weights")
    if plan.coded:
        args.vector(plan.coded.scale, "scale")
        if plan.coded.codes.dtype == np.uint8:
            args.vector(plan.coded.zero, "zero")
    if plan.sparse or plan.listed:
        args.vector(plan.offsets, "offsets")
        args.vector(plan.start, "start")
    if plan.order.size:
        args.vector(plan.order, "order")
    if plan.kind == "i8":
        args.vector(plan.bias_by_place, "bias")
    dot = "vi_dot4_pairs" if plan.pairs else DOT[plan.kind]
    context: dict[str, Any] = {
        "title": plan.title,
        "kind": plan.kind,
        "dot": dot,
        "sparse": plan.sparse,
        "sub": (16 if plan.matrix else target.unit) // target.lanes,
        "units": 16 // target.unit,
        "vector": 4 * target.lanes,
        "k": plan.k,
        "stride": plan.block_bytes,
        "panel_bytes": _panels(plan, target),
        "packs": plan.packs,
        "chunks": plan.chunks,
        "chunk_packs": plan.chunk_packs,
        "quads": plan.quads,
        "run": plan.run,
        "slab": SLAB_QUADS,
        "prefetch": PREFETCH_BYTES,
        "fetch": -(-plan.weights.nbytes // (64 * plan.chunks * plan.quads)) + 1,
        "ordered": plan.order.size > 0,
        "tiles": plan.tiles,
        "loops": target.loops,
        "coded": plan.coded,
    }
    if plan.words:
        context |= _in_words(plan.words, args)
    leaf: dict[str, str] = {}
    if anchor.op == "qlinear":
        scale = graph.constants[anchor.inputs[2]]
        bounds = accumulator_bounds(graph.constants[anchor.inputs[1]], plan.bias[: plan.n])
        prog = body.program(leaf, {anchor.output: Accumulator("acc", scale, *bounds)})
        leaf[anchor.output] = f"(vf_cvt(acc) * {prog.constant(scale, 'scale')})"
    else:
        leaf[anchor.output] = "acc"
        prog = body.program(leaf)
    context["seen"] = body.watch(prog)
    panels = body.stores(prog, masked=False)
    context |= {"panels": panels, "epilogue": prog.lines, "ahead": sorted(body.lines_ahead)}
    on_tiles = "masked" if plan.sparse else "tiles"
    stored = "sparse" if plan.sparse else "coded" if plan.coded else "dense"
    form = f"{'coded_' if plan.coded else ''}{on_tiles}" if plan.matrix else stored
    whole = "lanes/linear_words.c.j2" if plan.words else "lanes/linear_dense.c.j2"
    template = "lanes/linear.c.j2" if plan.tiles else whole
    if plan.matrix:
        assert target.matrix is not None
        template = "lanes/linear_tiles.c.j2"
        context |= _on_tiles(plan, target.matrix)
    base = f"linear_{plan.kind}_{form}_{plan.n}x{plan.k}"
    name, text = named(base, template, args, context)
    return LaneKernel(
        name=name,
        text=text,
        args=args,
        scratch=_panels(plan, target) + _waiting(plan, bool(panels), target),
        title=plan.title,
        tiles=plan.tiles,
        matrix=plan.matrix,
        whole=bool(plan.coded) and not plan.matrix,
        quads=plan.quads,
        unit=target.unit if plan.tiles or plan.words else 16 if plan.matrix else 1,
        weights_rows=WEIGHTS_ROWS[on_tiles if plan.matrix else "vectors"],
        tile_products=-(-plan.n // CHANNELS)
        * tile_count(plan.k, plan.kind)
        * (len(_products(plan)) if plan.kind == "f32" else 1)
        * plan.matrix,
        shape=f"{plan.k}x{plan.n}",
        sparsity=round(1.0 - plan.nonzero / (plan.n * plan.packs), 4),
        work_block=plan.nonzero,
    )
