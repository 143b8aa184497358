"""Lane groups -> C functions and the arguments of their calls.

A function's text depends on the structure only (shapes, tiles, sparsity form, the sequence of
elementwise operations); weights, tables and numbers arrive in its argument struct.  Layers
that look alike therefore share one function, which keeps the C compiler's work small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsec.compiler.codegen.lanes import byte_tables
from sparsec.compiler.codegen.lanes.arguments import Args
from sparsec.compiler.codegen.lanes.program import Accumulator, Program
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering import lanes
from sparsec.compiler.lowering.elements import BYTES, F32, S8, U8
from sparsec.compiler.lowering.groups import Group
from sparsec.compiler.lowering.lanes import Choice
from sparsec.compiler.templates import environment
from sparsec.interface import ELEMENTS


@dataclass(frozen=True)
class LaneKernel:
    """A C function for a lane group, and what one call of it passes.

    Attributes:
        name: of the function; tiles of a linear kernel append ``_t<T>``.
        text: the C source of the function and its helpers.
        args: buffers, constant vectors and numbers of the call.
        tiles: units of rows of each tile variant, largest first (sparse linear kernels only).
        quads: groups of 4 output channels (linear kernels only).
        unit: rows that are computed together (linear kernels only).
        weights_rows: rows that take as long as weights take to arrive (linear kernels only).
        tile_products: products of tiles for 16 rows (linear kernels only).
        scratch: bytes of scratch memory for one thread.
        title: one line for comments and the manifest.
        matrix: the kernel works on tiles, which its thread has to configure.
        whole: the kernel takes all of its blocks of rows a call (linear kernels only).
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
    unit: int = 1
    weights_rows: int = 0
    tile_products: int = 0
    heads: int = 0
    loops: bool = False
    matrix: bool = False
    whole: bool = False
    shape: str = ""
    sparsity: float = 0.0
    work_block: int = 0
    work_key: int = 0


def named(base: str, template: str, args: Args, context: Mapping[str, Any]) -> tuple[str, str]:
    """Render with a name made of `base` and a hash of the text."""
    text = environment().get_template(template).render(name="@NAME@", args=args, **context)
    name = f"{base}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name, text.replace("@NAME@", name)


@dataclass(frozen=True)
class Panel:
    """An output in panels.

    Attributes:
        y: C expression of where they are.
        pack: C function that packs 4 channels.
        zero: C arguments that it is given besides: a zero point, a table, or none.
    """

    y: str
    pack: str
    zero: str


@dataclass
class Body:
    """Shared by the kernels: programs over the graph with operands read from lanes."""

    graph: Graph
    choice: Choice
    group: Group
    outputs: Mapping[str, frozenset[str]]
    gathers: Mapping[str, Node]
    lane_made: frozenset[str]
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
            return self._row_load(self.args.vector(table, "positions"), "float", "pos", F32)
        if rows is None:
            # The same for all rows: a number, or one for each channel.
            letter = "f" if dtype == F32 else "i"
            at = "0" if lanes.is_number(graph.values[root]) else self._column()
            return f"v{letter}_set1({self.args.input((root, 'flat'), dtype)}[{at}])"
        if root in self.gathers:
            node = self.gathers[root]
            table = graph.constants[node.inputs[0]]
            ids = graph.values[node.inputs[1]]
            at = self.args.input((self.choice.root(ids.name), "flat"), ids.dtype, "ids")
            found = (
                f"sparsec_index(rt, {self.args.site(node)}, {at}[flat], {table.shape[0]}, place)"
            )
            pointer = self.args.vector(table, "table")
            return self._row_load(pointer, ELEMENTS[table.dtype.name].c_type, found, dtype)
        if root not in self.lane_made:
            pointer = self.args.input((root, "flat"), dtype)
            return self._row_load(pointer, ELEMENTS[dtype.name].c_type, "flat", dtype)
        offset = f"(blk * {self.padded} + c) * 16 + s * VL"
        if dtype in BYTES:
            letters = "u8" if dtype == U8 else "s8"
            return f"vi_load_{letters}({self.args.input((root, 'byte'), dtype)} + {offset})"
        pointer = self.args.input((root, "lane"), dtype)
        self.lines_ahead.add(f"__builtin_prefetch({pointer} + {offset}, 0, 2);")
        return f"v{'f' if dtype == F32 else 'i'}_load({pointer} + {offset})"

    def _row_load(self, pointer: str, ctype: str, index: str, dtype: np.dtype[Any]) -> str:
        """C expression of a channel of a row for each lane: of row `index` behind `pointer`."""
        base = pointer.removeprefix("a->")
        many = sum(field["pointer"] == pointer for field in self.fields.values())
        key = f"{base}_{many}" if many else base
        self.fields[key] = {"field": key, "ctype": ctype, "pointer": pointer, "index": index}
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

    def watch(self, prog: Program) -> list[str]:
        """Append that a value is seen, where its extremes are wanted.

        Returns:
            C expressions of where its least and its greatest go; nothing where nobody asks.
        """
        node = self.group.extremes
        if node is None:
            return []
        channels = self.group.channels
        inside = "" if channels % 4 == 0 else f"if (c < {channels}) "
        prog.lines.append(f"{inside}v_see(seen, {prog.demand(node.inputs[0])});")
        ends = [self.args.output((name, "flat"), F32, "extreme") for name in node.outputs]
        self.args.cleared += [(name, "flat") for name in node.outputs]
        return ends

    def stores(self, prog: Program, masked: bool) -> list[Panel]:
        """Append stores of this group's outputs; returns those that are written as panels.

        A panel's value is handed to the caller through ``*p<k>``, which packs 4 channels.
        """
        panels: list[Panel] = []
        forms = [(name, form) for name in self.outputs for form in self.outputs[name]]
        # Panels last: a value that nothing else asked for needs no saturation of its own.
        for name, form in sorted(forms, key=lambda pair: (pair[1].startswith("panel"), pair)):
            y = self.args.output((name, form), self.graph.values[name].dtype)
            if form == "lane":
                self._store_lanes(prog, name, y, masked)
                continue
            value, zero, wants, table = self._byte(prog, name, form)
            if form.startswith("panel"):
                prog.lines.append(f"*p{len(panels)} = {value};")
                pack = (f"_{wants}" if zero else "") + ("_by" if table else "")
                more = ", ".join(filter(None, (zero, table)))
                panels.append(Panel(y, f"vi_pack4{pack}", more))
                continue
            if zero:
                value = f"vi_saturate_{wants}({value}, {zero})"
            if table:
                value = f"vi_lookup({value}, {table})"
            call, lanes_ = ("vi_store_8_lanes", ", lo, hi") if masked else ("vi_store_8", "")
            prog.lines.append(f"{call}({self._place(y)}, {value}{lanes_});")
        return panels

    def _place(self, y: str) -> str:
        """C expression of where a vector of the rows of a channel is."""
        return f"{y} + (blk * {self.padded} + c) * 16 + s * VL"

    def _byte(self, prog: Program, name: str, form: str) -> tuple[str, str, str, str]:
        """A value as a byte of the form: C expression, zero point, signedness, and table.

        With a zero point, the expression is the number of steps from it, not saturated yet; it is
        "" where the expression is the byte itself.  With a table, all that is of a byte which the
        value is looked up by.
        """
        dtype = self.graph.values[name].dtype
        wants = _wanted(form, dtype)
        found = byte_tables.find(name, self.graph, prog.producers, prog.resolve)
        if found is not None:
            others = self.graph.values[found.source].dtype
            value, zero, own, _ = self._byte(prog, found.source, "s8" if others == S8 else "u8")
            flip = 128 * (wants != ("s8" if dtype == S8 else "u8"))
            return value, zero, own, self.args.vector(found.bytes ^ np.uint8(flip), "bytes")
        steps = prog.steps(name)
        if steps is not None:
            value, zp = steps
            shift = 128 * ((dtype == S8) - (wants == "s8"))
            return value, self.args.integer(zp + shift, "zero"), wants, ""
        value = prog.demand(name)
        if wants != ("s8" if dtype == S8 else "u8"):
            value = f"({value} ^ 128)"  # the other signedness is 128 away
        return value, "", wants, ""

    def _store_lanes(self, prog: Program, name: str, y: str, masked: bool) -> None:
        """Append the store of a value in lanes of 4 bytes."""
        value, at = prog.demand(name), self._place(y)
        if masked:
            prog.lines.append(f"vi_store_lanes({at}, (vi){value}, lo, hi);")
            return
        call = "vf_store" if self.graph.values[name].dtype == F32 else "vi_store"
        prog.lines.append(f"{call}({at}, {value});")
        self.lines_ahead.add(f"__builtin_prefetch({at}, 0, 2);")


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
