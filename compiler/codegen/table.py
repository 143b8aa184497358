"""The table of kernels: all that is known of each, in a row.

A row that lacks a part cannot be made, nor a table that leaves an op without a kernel.  Emission
(``kernels.py``), ``benchmarks/cases.py``, the tests, ``sparsec inspect`` and ``docs/kernels.md``
read the table.  What kernels compute is said by their ops alone: the references of the op table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from sparsec import targets
from sparsec.compiler.codegen.general import (
    contraction,
    elementwise,
    indexing,
    layout,
    reduction,
)
from sparsec.compiler.codegen.general.attention import emit_attention
from sparsec.compiler.codegen.general.convolution import emit_conv, emit_conv_integer
from sparsec.compiler.codegen.general.render import Call
from sparsec.compiler.codegen.general.tokens import emit_lengths
from sparsec.compiler.codegen.lanes import byte_scores
from sparsec.compiler.codegen.lanes.attention import (
    attention_kernel,
    floats_kernel,
    packed_kernel,
)
from sparsec.compiler.codegen.lanes.body import Body, LaneKernel
from sparsec.compiler.codegen.lanes.linear import linear_kernel
from sparsec.compiler.codegen.lanes.map import map_kernel, unpack_kernel
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering import attention, linear
from sparsec.compiler.lowering.elements import LANE_OPS
from sparsec.compiler.lowering.linear import LinearPlan, Packed, Plans
from sparsec.compiler.ops import OPS
from sparsec.compiler.templates import read_template
from sparsec.errors import UnsupportedError
from sparsec.targets import Target

ELEMENTWISE = tuple(op for op, row in OPS.items() if row.elementwise)


@dataclass(frozen=True)
class Packing:
    """How a kernel has its weights stored.

    Attributes:
        pack: ``pack(weights [N, K], packs of a chunk)``.
        layout: what that makes, in a line.
    """

    pack: Callable[[Any, int], Packed]
    layout: str


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What is known of a kernel, wherever it runs.

    Attributes:
        name: its own; functions in C add a shape to it.
        family: "linear", "attention", "map", "unpack", or "general".
        ops: that it computes; what is fused with them is elementwise.
        has: whether a target has it, at its precision.
        precision: of products of floats that it is for; "fp32" also where it has none.
        packing: of its weights; None: it has none, or reads them as the model stores them.
        tilings: how many blocks of 16 rows (linear), or channels of the result (attention), it can
            have in registers together; empty where that is the C compiler's choice.
        templates: its files in ``templates/``, what it is made of first.
    """

    name: str
    family: str
    ops: tuple[str, ...]
    has: Callable[[Target], bool]
    precision: str
    packing: Packing | None
    tilings: Callable[[Target], tuple[int, ...]]
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        for op in self.ops:
            if op not in OPS:
                raise ValueError(f"kernel {self.name}: there is no op {op}")
        if not self.templates:
            raise ValueError(f"kernel {self.name} has no template")
        for template in self.templates:
            read_template(template)
        if not self.targets:
            raise ValueError(f"kernel {self.name}: no target has it")

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets that have it, at its precision."""
        return tuple(targets.at(t, self.precision) for t in targets.TARGETS if self.has(t))

    def is_for(self, target: Target) -> bool:
        """Whether a target has it, and multiplies floats as it does."""
        return self.has(target) and self.precision == target.precision

    @property
    def references(self) -> Mapping[str, Callable[..., Any]]:
        """What it computes, by numpy: the op table's references of its ops."""
        return {op: OPS[op].reference for op in self.ops}


# -- rows in lanes


@dataclass(frozen=True, eq=False)
class Request:
    """What is wanted of the kernels in lanes.

    Attributes:
        body: of the group to compute.
        target: the ISA to emit for.
        layers: packed linear layers.
        leaving: a value of the group that is to be moved to its row-major buffer; "": none, but
            the group is to be computed.
    """

    body: Body
    target: Target
    layers: Plans
    leaving: str = ""

    @property
    def family(self) -> str:
        """Of the kernels that may do it."""
        return "unpack" if self.leaving else self.body.group.kind

    @property
    def anchor(self) -> Node:
        """The layer or attention that the group is built around."""
        return self.body.group.nodes[0]

    @cached_property
    def plan(self) -> LinearPlan:
        """How the anchor, a layer, is packed and cut."""
        forms = (form for forms in self.body.outputs.values() for form in forms)
        panels = any(form.startswith("panel") for form in forms)
        return self.layers.get(self.anchor, self.body.graph, panels)

    @cached_property
    def shape(self) -> attention.Shape:
        """Of the anchor, an attention."""
        return attention.Shape.of(self.anchor, self.body.graph, self.target)

    @cached_property
    def on_tiles(self) -> bool:
        """Whether the products of the anchor, an attention, are of tiles."""
        return attention.on_tiles(self.shape, self.target)

    @cached_property
    def byte_scores(self) -> byte_scores.ByteScores | None:
        """Of the anchor, an attention."""
        return byte_scores.find(self.anchor, self.body.graph) if self.shape.pv == "i8" else None


@dataclass(frozen=True, kw_only=True)
class InLanes(Kernel):
    """A kernel whose rows are in lanes.

    Attributes:
        why_not: "" where it does what is wanted of its family, on a target that has it; else the
            reason why not.
        emit: the C of a function that does it, and what a call passes.
    """

    why_not: Callable[[Request], str]
    emit: Callable[[Request], LaneKernel]


def _everywhere(target: Target) -> bool:
    return True


def _adds_pairs(target: Target) -> bool:
    return target.adds_pairs


def _multiplies_tiles(target: Target) -> bool:
    return target.matrix is not None


def _multiplies_bf16(target: Target) -> bool:
    return target.bf16 is not None


def _rounded(pack: Callable[[Any, int], Packed], layout: str) -> Packing:
    """How a kernel has float weights stored as bfloat16."""
    return Packing(lambda w, packs: pack(linear.rounded(w), packs), f"bfloat16; {layout}")


def _untiled(target: Target) -> tuple[int, ...]:
    return ()


def _first(*facts: tuple[bool, str]) -> str:
    """The first reason that holds, or ""."""
    return next((reason for holds, reason in facts if holds), "")


def _tilings(rows: bool, matrix: bool) -> Callable[[Target], tuple[int, ...]]:
    """Blocks of rows that linear layers can have in registers together; none with channels in
    lanes."""
    if matrix:
        return lambda target: (2,)
    return (lambda target: target.tiles.sparse) if rows else _untiled


def _linear(
    kind: str,
    packing: Packing,
    *,
    sparse: bool,
    has: Callable[[Target], bool] = _everywhere,
    pairs: bool = False,
    runs: bool = False,
    matrix: bool = False,
    coded: bool = False,
) -> InLanes:
    rows = sparse or coded or kind == "bf16"
    whole = "linear_words" if pairs else "linear_dense"
    template = "linear_tiles" if matrix else "linear" if rows else whole
    on_tiles = "masked" if sparse else "tiles"
    stored = "sparse" if sparse else "coded" if coded else "dense"
    form = f"{'coded_' if coded else ''}{on_tiles}" if matrix else stored
    weights = "f32" if kind == "bf16" else kind

    def why_not(request: Request) -> str:
        plan = request.plan
        return _first(
            (plan.kind != kind, f"its weights are {plan.kind}"),
            (plan.matrix and not matrix, "products of tiles are faster"),
            (matrix and not plan.matrix, "its rows or products are too few"),
            (plan.sparse and not sparse, "zeros are not stored"),
            (sparse and not plan.sparse, "too few weights are zero"),
            (pairs and not plan.pairs, "products are not added in pairs"),
            (plan.pairs and not pairs, "products are added in pairs"),
            (coded and not plan.coded, "its weights are not whole numbers times scales"),
            (bool(plan.coded) and not coded, "its weights are stored as bytes or nibbles"),
            (runs and plan.run == 1, "weights are not pruned in blocks"),
            (plan.run > 1 and not runs, "weights are pruned in blocks"),
        )

    return InLanes(
        name=f"linear_{kind}_{form}{'_pairs' if pairs else '_runs' if runs else ''}",
        family="linear",
        ops=tuple(op for op, row in OPS.items() if row.linear == weights),
        has=has,
        precision="bf16" if kind == "bf16" else "fp32",
        why_not=why_not,
        packing=packing,
        tilings=_tilings(rows, matrix),
        templates=(f"lanes/{template}.c.j2",),
        emit=lambda request: linear_kernel(request.body, request.plan, request.target),
    )


def _attention(
    qk: str, pv: str, *, on_bytes: bool = False, matrix: bool = False, pairs: bool = False
) -> InLanes:
    split = matrix and (qk, pv) == ("f32", "f32")
    packed = not split and (matrix or "bf16" in (qk, pv))

    def why_not(request: Request) -> str:
        have = request.shape
        return _first(
            (have.qk != qk, f"scores are products of {have.qk}"),
            (have.pv != pv, f"probabilities and values are {have.pv}"),
            (on_bytes and not request.byte_scores, "scores are not bytes before the softmax"),
            (not on_bytes and bool(request.byte_scores), "scores are bytes before the softmax"),
            (matrix and not request.on_tiles, "its tokens are too few for tiles"),
            (not matrix and request.on_tiles, "products of tiles are faster"),
        )

    def emit(request: Request) -> LaneKernel:
        of = (request.body, request.target, request.shape)
        if split:
            return floats_kernel(*of)
        if packed:
            return packed_kernel(*of, matrix, request.byte_scores)
        return attention_kernel(*of, request.byte_scores)

    def has(target: Target) -> bool:
        floats = "bf16" not in (qk, pv) or target.bf16 is not None
        added = target.adds_pairs == pairs or not on_bytes or matrix
        return floats and added and (not matrix or target.matrix is not None)

    on_vectors = "attention_words" if pairs else "attention_bytes" if on_bytes else "attention"
    own = "attention_floats" if split else "attention_packed" if packed else on_vectors
    unit = "_tiles" if matrix else "_pairs" if pairs else ""
    around = ("lanes/attention.c.j2",) if on_bytes or split else ()
    return InLanes(
        name=f"attention_{qk}_{pv}{unit}{'_bytes' if on_bytes else ''}",
        family="attention",
        ops=("attention",),
        has=has,
        precision="bf16" if "bf16" in (qk, pv) else "fp32",
        why_not=why_not,
        packing=None,
        tilings=lambda target: (
            (16,) if matrix else (target.tiles.out_i8 if pv == "i8" else target.tiles.out_f32,)
        ),
        templates=(f"lanes/{own}.c.j2", *around),
        emit=emit,
    )


def _map(name: str, ops: tuple[str, ...], why_not: Callable[[Request], str]) -> InLanes:
    return InLanes(
        name=name,
        family="map",
        ops=ops,
        has=_everywhere,
        precision="fp32",
        why_not=why_not,
        packing=None,
        tilings=_untiled,
        templates=("lanes/map.c.j2",),
        emit=lambda request: map_kernel(request.body),
    )


def _unpack(request: Request) -> LaneKernel:
    body, name = request.body, request.leaving
    return unpack_kernel(name, body.graph, body.choice.rows[name])


FOURS = "all packs, those of 4 output channels side by side"
DENSE = "all packs, those of 16 output channels side by side"
STREAM = "non-zero packs of 4 output channels side by side, and the places of what they multiply"

IN_LANES: tuple[InLanes, ...] = (
    _linear(
        "i8",
        Packing(linear.pack_sparse, STREAM),
        sparse=True,
        has=lambda target: not target.adds_pairs,
    ),
    _linear(
        "i8",
        Packing(
            linear.pack_pairs,
            f"{STREAM}; what may leave 16 bits is in two halves",
        ),
        sparse=True,
        has=_adds_pairs,
        pairs=True,
    ),
    _linear(
        "i8",
        Packing(linear.pack_dense, DENSE),
        sparse=False,
        has=lambda target: not target.adds_pairs,
    ),
    _linear(
        "i8",
        Packing(
            linear.pack_in_words,
            "all packs, in groups whose products are added in 16 bits, those of 64 output channels "
            "side by side; what may leave 16 bits apart",
        ),
        sparse=False,
        has=_adds_pairs,
        pairs=True,
    ),
    _linear(
        "i8",
        Packing(
            linear.pack_tiles,
            "all, in tiles of 16 output x 64 input channels; where enough are empty, without those",
        ),
        sparse=False,
        has=_multiplies_tiles,
        matrix=True,
    ),
    _linear(
        "i8",
        Packing(linear.pack_masked, "such tiles, each as a mask and the weights that are not zero"),
        sparse=True,
        has=_multiplies_tiles,
        matrix=True,
    ),
    _linear("f32", Packing(linear.pack_sparse, STREAM), sparse=True),
    _linear(
        "f32",
        Packing(linear.pack_runs, f"{STREAM}; {linear.RUN} packs share a place"),
        sparse=True,
        runs=True,
    ),
    _linear("f32", Packing(linear.pack_dense, DENSE), sparse=False),
    _linear(
        "f32",
        Packing(
            linear.pack_coded,
            "all, as bytes or nibbles, those of 4 output channels side by side, and their scales",
        ),
        sparse=False,
        coded=True,
    ),
    _linear(
        "f32",
        Packing(
            linear.pack_float_tiles,
            "all, in tiles of 16 output x 32 input channels, even inputs before odd ones; each "
            "float becomes the three bfloat16 whose sum it is when it is used",
        ),
        sparse=False,
        has=_multiplies_tiles,
        matrix=True,
    ),
    _linear(
        "f32",
        Packing(linear.pack_coded_tiles, "such tiles, as bytes or nibbles, and their scales"),
        sparse=False,
        has=_multiplies_tiles,
        matrix=True,
        coded=True,
    ),
    _linear("bf16", _rounded(linear.pack_sparse, STREAM), sparse=True, has=_multiplies_bf16),
    _linear("bf16", _rounded(linear.pack_quads, FOURS), sparse=False, has=_multiplies_bf16),
    _linear(
        "bf16",
        _rounded(
            linear.pack_tiles,
            "all, in tiles of 16 output x 32 input channels; where enough are empty, without those",
        ),
        sparse=False,
        has=lambda target: _multiplies_bf16(target) and _multiplies_tiles(target),
        matrix=True,
    ),
    *(_attention("i8", "i8", on_bytes=True, matrix=matrix) for matrix in (False, True)),
    _attention("i8", "i8", on_bytes=True, pairs=True),
    *(_attention(qk, pv) for qk in ("i8", "f32") for pv in ("i8", "f32")),
    _attention("i8", "i8", matrix=True),
    _attention("f32", "f32", matrix=True),
    *(
        _attention(qk, pv, matrix=matrix)
        for qk, pv in (("bf16", "bf16"), ("i8", "bf16"), ("bf16", "i8"))
        for matrix in (False, True)
    ),
    _map(
        "map_layernorm",
        ("layernorm",),
        lambda request: "" if request.body.group.norm else "it has no normalization",
    ),
    _map(
        "map",
        (*LANE_OPS, "gather"),
        lambda request: "it has a normalization" if request.body.group.norm else "",
    ),
    InLanes(
        name="unpack",
        family="unpack",
        ops=(),
        has=_everywhere,
        precision="fp32",
        why_not=lambda request: "",
        packing=None,
        tilings=_untiled,
        templates=("lanes/unpack.c.j2",),
        emit=_unpack,
    ),
)


def choose(request: Request) -> InLanes:
    """The row of the kernel that does what is wanted.

    Raises:
        ValueError: none does; says why.
    """
    reasons = []
    for row in IN_LANES:
        if row.family != request.family:
            continue
        reason = row.why_not(request) if row.has(request.target) else "the target does not have it"
        if not reason:
            return row
        reasons.append(f"{row.name}: {reason}")
    source = request.body.group.source
    raise ValueError(f"{source}: no {request.family} kernel does it: {'; '.join(reasons)}")


# -- row by row


@dataclass(frozen=True, kw_only=True)
class RowMajor(Kernel):
    """A general kernel: it takes any node of its ops, but for what its emitter refuses.

    Attributes:
        emit: the C of a function that does it; raises ValueError with the reason why not.
    """

    emit: Callable[[Call], str]

    def why_not(self, call: Call) -> str:
        """ "" where it does what is wanted, else the reason why not."""
        try:
            self.emit(call)
        except ValueError as error:
            return str(error)
        return ""


def _general(
    emit: Callable[[Call], str], name: str, *ops: str, templates: Iterable[str] = ()
) -> RowMajor:
    """The row of the general kernel of some ops, by default of the op that it is named for."""
    return RowMajor(
        name=f"general_{name}",
        family="general",
        ops=ops or (name,),
        has=_everywhere,
        precision="fp32",
        packing=None,
        tilings=_untiled,
        templates=tuple(f"general/{file}.c.j2" for file in templates or (name,)),
        emit=emit,
    )


REDUCTIONS = tuple(op for op in OPS if op.startswith("reduce_"))

GENERAL: tuple[RowMajor, ...] = (
    _general(elementwise.emit_group, "elementwise", *ELEMENTWISE),
    _general(layout.emit_reshape, "reshape", templates=["strided"]),
    _general(layout.emit_transpose, "transpose", templates=["transpose", "strided"]),
    _general(layout.emit_expand, "expand", templates=["strided"]),
    _general(layout.emit_concat, "concat"),
    _general(layout.emit_slice, "slice", templates=["strided"]),
    _general(layout.emit_gather, "gather"),
    _general(layout.emit_split, "split"),
    _general(indexing.emit_gather_elements, "gather_elements"),
    _general(indexing.emit_gather_nd, "gather_nd"),
    _general(indexing.emit_scatter_elements, "scatter_elements"),
    _general(indexing.emit_scatter_nd, "scatter_nd"),
    _general(indexing.emit_extreme_index, "argmax", "argmax", "argmin"),
    _general(indexing.emit_topk, "topk"),
    _general(reduction.emit_reduce, "reduce", *REDUCTIONS),
    _general(reduction.emit_extremes, "extremes"),
    _general(reduction.emit_softmax, "softmax"),
    _general(reduction.emit_cumsum, "cumsum"),
    _general(reduction.emit_layernorm, "layernorm"),
    _general(contraction.emit_matmul, "matmul"),
    _general(contraction.emit_linear, "linear"),
    _general(contraction.emit_linear_integer, "linear_integer", templates=["integer"]),
    _general(contraction.emit_matmul_integer, "matmul_integer", templates=["integer"]),
    _general(contraction.emit_qlinear, "qlinear", templates=["integer"]),
    _general(emit_conv, "conv", templates=["conv", "depthwise"]),
    _general(emit_conv_integer, "conv_integer", templates=["conv", "depthwise"]),
    _general(emit_attention, "attention"),
    _general(emit_lengths, "lengths"),
)


Row = TypeVar("Row", bound=Kernel)


def table(*rows: Row) -> dict[str, Row]:
    """Rows by name.

    Raises:
        ValueError: two have one name.
    """
    made = {row.name: row for row in rows}
    if len(made) < len(rows):
        raise ValueError("two kernels have one name")
    return made


def by_op(rows: Iterable[RowMajor]) -> dict[str, RowMajor]:
    """General kernels by op.

    Raises:
        ValueError: an op has none, or more than one.
    """
    pairs = [(op, row) for row in rows for op in row.ops]
    if sorted(op for op, _ in pairs) != sorted(OPS):
        raise ValueError("an op has no general kernel, or two")
    return dict(pairs)


#: All kernels by name.
KERNELS: dict[str, Kernel] = table(*IN_LANES, *GENERAL)

_BY_OP = by_op(GENERAL)


def general(nodes: Sequence[Node]) -> RowMajor:
    """The row of the kernel of a row-major node, or of several elementwise ones in one loop."""
    return _BY_OP[nodes[0].op]


def unsupported(node: Node, graph: Graph) -> str:
    """ "" if a general kernel takes the node, else the reason why not."""
    return general([node]).why_not(Call.of(node, graph, "probe"))


def check_supported(graph: Graph) -> None:
    """Raise UnsupportedError with every node that no kernel covers."""
    reasons = ((node, unsupported(node, graph)) for node in graph.nodes)
    bad = [(node.source or node.output, node.op, reason) for node, reason in reasons if reason]
    if bad:
        listing = "\n".join(f"  {name} ({op}): {reason}" for name, op, reason in bad)
        raise UnsupportedError(f"{len(bad)} node(s) cannot be compiled:\n{listing}", bad)
