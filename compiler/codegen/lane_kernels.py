"""Lane groups -> C functions and the arguments of their calls.

A function's text depends on the structure only (shapes, tiles, sparsity form, the sequence of
elementwise operations); weights, tables and numbers arrive in ``lane_args``.  Layers that look
alike therefore share one function, which keeps the C compiler's work small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsec.compiler.ir import Dim, Graph, Node
from sparsec.compiler.lowering import byte_scores, lanes, program
from sparsec.compiler.lowering.lanes import Choice, Group
from sparsec.compiler.lowering.linear import SLAB_QUADS, LinearPlan
from sparsec.compiler.lowering.program import BYTES, F32, S8, U8, Accumulator, Args, Program
from sparsec.compiler.lowering.requantize import accumulator_bounds
from sparsec.compiler.templates import environment
from sparsec.interface import ELEMENTS
from sparsec.targets import Target

#: How far ahead of its use a sparse weight stream is fetched: the time that memory takes to answer,
#: at the few bytes a cycle that the loop reads.
PREFETCH_BYTES = 2048

#: A buffer: a value in one of its forms.  Forms: "flat" (row-major), "lane" (4-byte lanes), "byte"
#: and "byte_s8" (byte lanes, as is or made signed), "panel_u8", "panel_s8" (made unsigned, signed).
Slot = tuple[str, str]


@dataclass(frozen=True)
class LaneKernel:
    """A C function for a lane group, and what one call of it passes.

    Attributes:
        name: of the function; tiles of a linear kernel append ``_t<T>``.
        text: the C source of the function and its helpers.
        args: buffers, constant vectors and numbers of the call.
        tiles: rows/16 of each tile variant, largest first (linear kernels only).
        quads: groups of 4 output channels (linear kernels only).
        scratch: bytes of scratch memory for one thread.
        title: one line for comments and the manifest.
        loops: the kernel takes several blocks of queries a call (attention only).
        shape: input x output channels, or heads x channels of a head.
        sparsity: share of all-zero packs of the weights (linear kernels only).
        work_block, work_key: multiply-adds of 16 lanes (VPDPBUSD or FMA) that the non-zero weights
            need for a block of 16 rows, and attention for 16 queries and one key.
    """

    name: str
    text: str
    args: Args
    scratch: int
    title: str
    tiles: tuple[int, ...] = ()
    quads: int = 0
    heads: int = 0
    loops: bool = False
    shape: str = ""
    sparsity: float = 0.0
    work_block: int = 0
    work_key: int = 0


def _named(base: str, template: str, context: Mapping[str, Any], helpers: str) -> tuple[str, str]:
    """Render with a name made of `base` and a hash of the text."""
    env = environment()
    body = helpers + env.get_template(template).render(name="@NAME@", **context)
    name = f"{base}_{hashlib.sha256(body.encode()).hexdigest()[:8]}"
    return name, body.replace("@NAME@", name)


@dataclass(frozen=True)
class Panel:
    """An output in panels: its slot, the function that packs 4 channels, and what else it takes."""

    slot: int
    pack: str
    zero: str


@dataclass
class Body:
    """Shared by the kernels: programs over the graph with operands read from lanes."""

    graph: Graph
    choice: Choice
    group: Group
    outputs: Mapping[str, set[str]]
    gathers: Mapping[str, Node]
    lane_made: set[str]
    args: Args = field(default_factory=Args)
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Statements that fetch what the program will read and write into the second-level cache (the
    #: first is full of activations), for kernels that have the time.
    lines_ahead: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.producers = {out: n for n in self.group.nodes for out in n.outputs}

    @property
    def padded(self) -> int:
        return (self.group.channels + 3) // 4 * 4

    def external(self, name: str) -> str | None:
        """C expression that loads an operand made elsewhere; None for what this group computes."""
        root = self.choice.root(name)
        if root in self.producers:
            return None
        graph = self.graph
        dtype = graph.values[name].dtype
        rows = self.choice.rows.get(name)
        if name in graph.constants:
            if not lanes.is_position_table(
                name, graph, lanes.Rows(self.group.domain, self.group.channels)
            ):
                return None
            table = graph.constants[name].reshape(graph.tokens, -1)
            return self._row_load(name, "float", f"cv[{self.args.vector(table)}]", "pos", F32)
        if rows is None:
            # The same for all rows: a number, or one for each channel.
            letter = "f" if dtype == F32 else "i"
            index = self.args.input((root, "flat"))
            at = "0" if lanes.is_number(graph.values[root]) else self._column()
            return f"v{letter}_set1(((const {ELEMENTS[dtype.name].c_type} *)a->in[{index}])[{at}])"
        if root in self.gathers:
            node = self.gathers[root]
            table = graph.constants[node.inputs[0]]
            ids = graph.values[node.inputs[1]]
            index = self.args.input((self.choice.root(node.inputs[1]), "flat"))
            ids_type = ELEMENTS[ids.dtype.name].c_type
            at = f"((const {ids_type} *)a->in[{index}])[flat]"
            site = f"a->site[{self.args.site(node)}]"
            expression = f"sparsec_index(rt, {site}, {at}, {table.shape[0]}, place)"
            slot = f"cv[{self.args.vector(table)}]"
            return self._row_load(name, ELEMENTS[table.dtype.name].c_type, slot, expression, dtype)
        if root not in self.lane_made:
            slot = f"in[{self.args.input((root, 'flat'))}]"
            return self._row_load(name, ELEMENTS[dtype.name].c_type, slot, "flat", dtype)
        offset = f"(blk * {self.padded} + c) * 16 + s * VL"
        if dtype in BYTES:
            index = self.args.input((root, "byte"))
            ctype, letter = ("uint8_t", "u8") if dtype == U8 else ("int8_t", "s8")
            return f"vi_load_{letter}((const {ctype} *)a->in[{index}] + {offset})"
        index = self.args.input((root, "lane"))
        self.lines_ahead.add(f"__builtin_prefetch((const float *)a->in[{index}] + {offset}, 0, 2);")
        return f"v{'f' if dtype == F32 else 'i'}_load((const float *)a->in[{index}] + {offset})"

    def _row_load(self, name: str, ctype: str, slot: str, index: str, dtype: np.dtype[Any]) -> str:
        key = f"r{len(self.fields)}"
        self.fields[key] = {
            "field": key,
            "ctype": ctype,
            "slot": slot,
            "index": index,
            "channels": self.group.channels,
        }
        return f"v{'f' if dtype == F32 else 'i'}_gather_{ctype}(r->{key}, {self._column()})"

    def _column(self) -> str:
        """C index of a channel; kernels also visit those that pad a group of 4."""
        channels = self.group.channels
        return "c" if channels % 4 == 0 else f"(c < {channels} ? c : 0)"

    def program(
        self,
        leaf: Mapping[str, str],
        accumulators: Mapping[str, Accumulator] | None = None,
        inexact: Collection[str] = (),
    ) -> Program:
        """A program whose leaves are `leaf` and the operands made elsewhere."""

        def find(name: str) -> str | None:
            root = self.choice.root(name)
            return leaf[root] if root in leaf else self.external(name)

        producers = dict(self.producers)
        for alias in self.choice.alias:
            root = self.choice.root(alias)
            if root in producers:
                producers[alias] = producers[root]
        return _AliasProgram(
            self.graph, self.args, find, producers, accumulators, inexact, choice=self.choice
        )

    def stores(self, prog: Program, masked: bool) -> list[Panel]:
        """Append stores of this group's outputs; returns those that are written as panels.

        A panel's value is handed to the caller through ``*p<k>``, which packs 4 channels.
        """
        panels: list[Panel] = []
        forms = [(name, form) for name in self.outputs for form in self.outputs[name]]
        # Panels last: a value that nothing else asked for needs no saturation of its own.
        for name, form in sorted(forms, key=lambda pair: (pair[1].startswith("panel"), pair)):
            dtype = self.graph.values[name].dtype
            slot = self.args.output((name, form))
            at = f"a->out[{slot}] + (blk * {self.padded} + c) * 16 + s * VL"
            steps = prog.steps(name) if form != "lane" else None
            wants = _wanted(form, dtype)
            if steps is not None:
                value, zp = steps
                zp += 128 * ((dtype == S8) - (wants == "s8"))
                zero = f"(int32_t)a->cs[{self.args.scalar(zp)}]"
            else:
                value = prog.demand(name)
                if wants != ("s8" if dtype == S8 else "u8") and form != "lane":
                    value = f"({value} ^ 128)"  # the other signedness is 128 away
            if form.startswith("panel"):
                pack = ("vi_pack4", "") if steps is None else (f"vi_pack4_{wants}", f", {zero}")
                prog.lines.append(f"*p{len(panels)} = {value};")
                panels.append(Panel(slot, *pack))
            elif form.startswith("byte"):
                if steps is not None:
                    value = f"vi_saturate_{wants}({value}, {zero})"
                call = "vi_store_8_lanes" if masked else "vi_store_8"
                prog.lines.append(f"{call}((char *){at}, {value}{', lo, hi' if masked else ''});")
            elif masked:
                prog.lines.append(f"vi_store_lanes((float *){at}, (vi){value}, lo, hi);")
            else:
                call = "vf_store" if dtype == F32 else "vi_store"
                prog.lines.append(f"{call}((float *){at}, {value});")
                self.lines_ahead.add(f"__builtin_prefetch((float *){at}, 0, 2);")
        return panels


class _AliasProgram(Program):
    """A program that sees through reshapes which keep the rows."""

    def __init__(self, *args: Any, choice: Choice) -> None:
        self._choice = choice
        super().__init__(*args)

    def resolve(self, name: str) -> str:
        return self._choice.root(name)

    def demand(self, name: str) -> str:
        return super().demand(self.resolve(name))


def _wanted(form: str, dtype: np.dtype[Any]) -> str:
    """Signedness of the bytes of a form: its own, or else the value's."""
    last = form.rsplit("_", 1)[-1]
    return last if last in ("u8", "s8") else "s8" if dtype == S8 else "u8"


def _function(head: str, lines: Sequence[str]) -> str:
    return "\n".join([f"SPARSEC_INLINE {head}", "{", *(f"    {line}" for line in lines), "}", ""])


def _panel_params(count: int) -> str:
    return "".join(f", vi *p{k}" for k in range(count))


def linear_kernel(body: Body, plan: LinearPlan, target: Target) -> LaneKernel:
    """The kernel of a linear group, one function for each tile height."""
    group, graph, args = body.group, body.graph, body.args
    anchor = group.nodes[0]
    x = body.choice.root(anchor.inputs[0])
    in_x = args.input((x, "panel_u8" if plan.kind == "i8" else "lane"))
    dot = "vi_dot4_pairs" if plan.pairs else "vi_dot4" if plan.kind == "i8" else "vf_fma_acc"
    context: dict[str, Any] = {
        "kind": plan.kind,
        "in_x": in_x,
        "sparse": plan.sparse,
        "dot": dot,
        "sub": 16 // target.lanes,
        "stride": plan.block_bytes,
        "packs": plan.packs,
        "chunks": plan.chunks,
        "chunk_packs": plan.chunk_packs,
        "last_packs": plan.packs - (plan.chunks - 1) * plan.chunk_packs,
        "quads": plan.quads,
        "run": plan.run,
        "slab": SLAB_QUADS,
        "prefetch": PREFETCH_BYTES,
        "fetch": -(-plan.weights.nbytes // (64 * plan.chunks * plan.quads)) + 1,
        "cv_weights": args.vector(plan.weights),
        "cv_offsets": args.vector(plan.offsets) if plan.sparse else -1,
        "cv_start": args.vector(plan.start) if plan.sparse else -1,
        "cv_order": args.vector(plan.order) if plan.order.size else -1,
        "cv_bias": args.vector(plan.bias_by_place) if plan.kind == "i8" else -1,
    }
    leaf: dict[str, str] = {}
    if anchor.op == "qlinear":
        scale = graph.constants[anchor.inputs[2]]
        bounds = accumulator_bounds(graph.constants[anchor.inputs[1]], plan.bias[: plan.n])
        prog = body.program(leaf, {anchor.output: Accumulator("acc", scale, *bounds)})
        leaf[anchor.output] = f"(vf_cvt(acc) * {prog.constant(scale)})"
    else:
        leaf[anchor.output] = "acc"
        prog = body.program(leaf)
    panels = body.stores(prog, masked=False)
    vt = "vi" if plan.kind == "i8" else "vf"
    helpers = _function(
        "void @NAME@_ep(const lane_args *a, int64_t blk, int s, int64_t c, "
        f"{vt} acc{_panel_params(len(panels))})",
        ["(void)a; (void)blk; (void)s; (void)c;", *prog.lines],
    )
    ahead = sorted(body.lines_ahead)
    if ahead:
        helpers += _function(
            "void @NAME@_ahead(const lane_args *a, int64_t blk, int64_t c)",
            ["const int s = 0;", *ahead],
        )
    context |= {"panels": panels, "ahead": bool(ahead)}
    title = plan.title
    base = f"linear_{plan.kind}_{'sparse' if plan.sparse else 'dense'}_{plan.n}x{plan.k}"
    body_text = helpers
    env = environment()
    for tile in plan.tiles:
        body_text += env.get_template("lanes/linear.c.j2").render(
            name="@NAME@", T=tile, comment=title, **context
        )
    name = f"{base}_{hashlib.sha256(body_text.encode()).hexdigest()[:8]}"
    waiting = plan.quads if plan.chunks > 1 else SLAB_QUADS if panels and plan.order.size else 0
    return LaneKernel(
        name=name,
        text=body_text.replace("@NAME@", name),
        args=args,
        scratch=4 * max(plan.tiles) * 16 * 4 * waiting,
        title=title,
        tiles=plan.tiles,
        quads=plan.quads,
        shape=f"{plan.k}x{plan.n}",
        sparsity=round(1.0 - plan.nonzero / (plan.n * plan.packs), 4),
        work_block=plan.nonzero,
    )


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
        helpers += _function(
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
    helpers += _function(
        "void @NAME@_ep(const lane_args *a, const @NAME@_rows *r, int64_t blk, int s, int64_t c, "
        f"vf x, vf y{_panel_params(len(panels))})",
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
    name, text = _named(
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
    function, text = _named(
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
    return LaneKernel(function, text, args, 0, title)


@dataclass(frozen=True)
class _Piece:
    count: int
    width: int


def _index(shape: Sequence[Dim], names: Sequence[str]) -> str:
    """C expression of an element's place; extents of 1 broadcast."""
    index = "0"
    for extent, which in zip(shape, names, strict=True):
        full = which if extent != 1 else "0"
        size = extent if isinstance(extent, int) else 1
        index = f"({index} * {size} + {full})" if index != "0" else full
    return index


def attention_kernel(body: Body, target: Target) -> LaneKernel:
    """The kernel of an attention group: one head of one or several blocks of 16 queries a call."""
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
    qk = "i8" if dtypes[0] in BYTES else "f32"
    pv = "i8" if p_type in BYTES else "f32"
    # One tensor may be several of them.
    in_q = args.input((q, "panel_u8" if qk == "i8" else "lane"))
    in_k = args.input((k, "panel_s8" if qk == "i8" else "lane"))
    in_v = args.input((v, "byte_s8" if pv == "i8" else "lane"))
    zero = [int(attrs[key]) for key in ("q_zp", "k_zp", "v_zp")]
    q_zp = zero[0] + (128 if dtypes[0] == S8 else 0)
    k_zp = zero[1] - (128 if dtypes[1] == U8 else 0)
    v_zp = zero[2] - (128 if dtypes[2] == U8 else 0)
    context: dict[str, Any] = {
        "qk": qk,
        "pv": pv,
        "in_q": in_q,
        "in_k": in_k,
        "in_v": in_v,
        "dim": dim,
        "channels": group.channels,
        "length": graph.tokens,
        "keep_q": qk == "i8" and dim // 4 <= target.tiles.query,
        "q_zp": bool(q_zp),
        "k_zp": bool(k_zp),
        "cs_q_zp": args.scalar(q_zp),
        "cs_k_zp": args.scalar(k_zp),
        "cs_v_zp": args.scalar(v_zp),
    }
    # What happens to a score; extras are read for each key (and query, where they depend on it).
    scale = f"(vf_cvt(acc) * vf_set1(a->cs[{args.scalar(attrs['qk_scale'])}]))"
    first = {score.inputs[0]: scale if qk == "i8" else "acc"}
    loads: dict[str, str] = {}
    prefix: list[str] = []
    masks: list[dict[str, Any]] = []
    for i, (inner, outer) in enumerate(zip(score.inputs[1:], node.inputs[3:], strict=True)):
        extra = graph.values[outer]
        ctype = ELEMENTS[extra.dtype.name].c_type
        if outer in graph.constants:
            pointer = f"a->cv[{args.vector(graph.constants[outer])}]"
        else:
            pointer = f"a->in[{args.input((body.choice.root(outer), 'flat'))}]"
        shape = (1,) * (4 - len(extra.shape)) + extra.shape
        index = _index(shape, ("seq", "head", "qi[i]", "kv"))
        # For those that do not depend on the query: where its keys begin, and whether it has any.
        row = _index(shape, ("seq", "head", "0", "0"))
        masks.append({"slot": pointer.removeprefix("a->"), "index": row, "keys": shape[3] != 1})
        prefix.append(f"const {ctype} *const e{i} = (const {ctype} *){pointer};")
        is_float = extra.dtype == F32
        convert = "" if is_float else "-(int32_t)"
        if shape[2] == 1:
            test = f"e{i}[{index}]" if is_float else f"-(int32_t)(e{i}[{index}] != 0)"
            loads[inner] = f"v{'f' if is_float else 'i'}_set1({test})"
        else:
            kind = "float" if is_float else "int32_t"
            each = f"e{i}[{index}]" if is_float else f"{convert}(e{i}[{index}] != 0)"
            prefix.append(f"{kind} g{i}[VL] __attribute__((aligned(64)));")
            prefix.append(f"for (int i = 0; i < VL; i++) g{i}[i] = {each};")
            loads[inner] = f"v{'f' if is_float else 'i'}_load(g{i})"
    inside = Program(score, args, {**first, **loads}.get)
    result = inside.demand(score.outputs[0])
    vt = "vi" if qk == "i8" else "vf"
    helpers = _function(
        "vf @NAME@_score(const lane_args *a, const int32_t *qi, int64_t seq, int64_t head, "
        f"int64_t kv, {vt} acc)",
        [
            "(void)a; (void)qi; (void)seq; (void)head; (void)kv;",
            *prefix,
            *inside.lines,
            f"return {result};",
        ],
    )
    after = Program(prob, args, {prob.inputs[0]: "x"}.get)
    result = after.demand(prob.outputs[0])
    if p_type == S8:
        result = f"({result} + 128)"
    helpers += _function(
        f"{'vi' if pv == 'i8' else 'vf'} @NAME@_prob(const lane_args *a, vf x)",
        ["(void)a;", *after.lines, f"return {result};"],
    )
    leaf = {node.output: "acc"}
    sums: dict[str, Accumulator] = {}
    if pv == "i8":
        leaf[node.output] = f"(vf_cvt(acc) * vf_set1(a->cs[{args.scalar(attrs['pv_scale'])}]))"
        most = np.int64(graph.tokens) * 255 * 255
        sums[node.output] = Accumulator("acc", np.float32(attrs["pv_scale"]), -most, most)
    prog = body.program(leaf, sums)
    panels = body.stores(prog, masked=True)
    vt = "vi" if pv == "i8" else "vf"
    helpers += _function(
        "void @NAME@_ep(const lane_args *a, int64_t blk, int s, int64_t c, int32_t lo, int32_t hi, "
        f"{vt} acc{_panel_params(len(panels))})",
        ["(void)a; (void)blk; (void)s; (void)c; (void)lo; (void)hi;", *prog.lines],
    )
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
    context |= {"pieces": pieces, "panels": panels, "comment": title}
    base = f"attention_{qk}_{pv}_{heads}x{dim}"
    found = byte_scores.find(node, graph) if pv == "i8" else None
    if found is None:
        name, text = _named(base, "lanes/attention.c.j2", context, helpers)
    else:
        any_text = helpers + environment().get_template("lanes/attention.c.j2").render(
            name="@NAME@", **context
        )
        context |= {
            "mask": None if found.mask is None else masks[found.mask],
            "pair": target.tiles.keys,
            "v_zp": bool(v_zp),
            "cs_step": args.scalar(found.factor),
            "cs_score_zp": args.scalar(found.zp),
            "cs_drop": args.scalar(found.drop),
            "cs_prob_inv": args.scalar(1.0 / found.prob_scale),
            "cv_decay": args.vector(byte_scores.decay_table(found.decay, target.vectors)),
        }
        any_text = any_text.replace("@NAME@", "@NAME@_any")
        name, text = _named(f"{base}_bytes", "lanes/attention_bytes.c.j2", context, any_text)
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


__all__ = [
    "LaneKernel",
    "Slot",
    "attention_kernel",
    "linear_kernel",
    "map_kernel",
    "program",
    "unpack_kernel",
]
