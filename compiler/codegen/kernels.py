"""Steps of a graph -> calls of kernels: the C text of each, and what it is given.

Who writes the text of which says the table of kernels, :mod:`~sparsec.compiler.codegen.table`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sparsec.compiler.codegen import table
from sparsec.compiler.codegen.general import (
    group_call,
    group_elementwise,
    group_interface,
    multiply_adds,
    render,
)
from sparsec.compiler.codegen.lanes.arguments import Field, Number
from sparsec.compiler.codegen.lanes.body import Body, LaneKernel
from sparsec.compiler.codegen.plan import (
    Argument,
    Call,
    Loaded,
    Operand,
    Site,
    Slot,
    Weights,
    Work,
)
from sparsec.compiler.codegen.sites import site_of
from sparsec.compiler.codegen.table import InLanes, Request
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering import forms, groups
from sparsec.compiler.lowering.groups import Group
from sparsec.compiler.lowering.lanes import Choice
from sparsec.compiler.lowering.linear import LinearPlan, Plans
from sparsec.compiler.lowering.pool import WeightPool
from sparsec.compiler.ops import OPS
from sparsec.interface import ELEMENTS
from sparsec.runtime.artifact import LayerInfo
from sparsec.targets import Target


@dataclass(frozen=True, eq=False)
class Setting:
    """What kernels are made for: the bucket's graph, the target, and what all buckets share."""

    graph: Graph
    choice: Choice
    target: Target
    pool: WeightPool
    layers: Plans


@dataclass(frozen=True, eq=False)
class Kernels:
    """All calls of a bucket, and what they need.

    Attributes:
        calls: in an order that respects every dependence.
        texts: C text of the kernels by the name of the function, each once.
        sites: by number.
    """

    calls: tuple[Call, ...]
    texts: Mapping[str, str]
    sites: tuple[Site, ...]


def make(setting: Setting) -> Kernels:
    """The kernels of a bucket; constants go into the pool, in the order of the calls."""
    return _Maker(setting).make()


def operand(slot: Slot, setting: Setting) -> Slot | Weights:
    """What a call passes for a value: its buffer, or where it is in the pool."""
    constants = setting.graph.constants
    if slot[1] == "flat" and slot[0] in constants:
        return Weights(setting.pool.add(constants[slot[0]]))
    return slot


def _buffers(operands: Iterable[Operand]) -> tuple[Slot, ...]:
    """The buffers among operands, each once."""
    return tuple(dict.fromkeys(value for value in operands if isinstance(value, tuple)))


def _layer(anchor: Node, plan: LinearPlan, kernel: LaneKernel) -> LayerInfo:
    """What is reported of a linear layer."""
    return LayerInfo(
        name=anchor.source,
        op=anchor.op,
        n=plan.n,
        k=plan.k,
        sparsity=round(plan.sparsity, 4),
        block4_sparsity=round(plan.block4_sparsity, 4),
        kernel=kernel.name,
        microseconds=dict(plan.microseconds),
    )


class _Maker:
    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.steps = groups.group(setting.graph, setting.choice)
        self.forms = forms.find(setting.graph, setting.choice, self.steps)
        self.calls: list[Call] = []
        self.texts: dict[str, str] = {}
        self.sites: list[Site] = []

    def make(self) -> Kernels:
        for step in self._fused_steps():
            if isinstance(step, Group):
                self._lane_group(step)
            else:
                self._row_major(step)
        return Kernels(tuple(self.calls), self.texts, tuple(self.sites))

    def _fused_steps(self) -> Iterator[Group | list[Node]]:
        """The steps, with neighbouring row-major nodes in groups that are one loop each."""
        waiting: list[Node] = []
        for step in self.steps:
            if step.node is not None:
                waiting.append(step.node)
            elif step.group is not None:
                yield from group_elementwise(self.setting.graph, waiting)
                waiting = []
                yield step.group
        yield from group_elementwise(self.setting.graph, waiting)

    # -- rows in lanes

    def _lane_group(self, group: Group) -> None:
        setting = self.setting
        stores = forms.stores(group, self.forms, setting.graph)
        body = Body(
            graph=setting.graph,
            choice=setting.choice,
            group=group,
            outputs=stores.forms,
            gathers=self.forms.gathers,
            # A copy reads its value row-major; everyone else finds the copied value in lanes.
            lane_made=self.forms.in_lanes,
        )
        source = group.source or ", ".join(group.copies)
        request = Request(body, setting.target, setting.layers)
        row = table.choose(request)
        kernel = row.emit(request)
        layer = _layer(request.anchor, request.plan, kernel) if row.packing else None
        work = Work(
            shape=kernel.shape,
            sparsity=kernel.sparsity,
            rows=setting.graph.tokens if group.domain == "token" else 1,
            work_block=kernel.work_block,
            work_key=kernel.work_key,
        )
        self._lane_call(row, kernel, group.domain, source, work, layer)
        for name in stores.flat:
            domain = setting.choice.rows[name].domain
            request = replace(request, leaving=name)
            row = table.choose(request)
            self._lane_call(row, row.emit(request), domain, source, Work())

    def _lane_call(
        self,
        row: InLanes,
        kernel: LaneKernel,
        domain: str,
        source: str,
        work: Work,
        layer: LayerInfo | None = None,
    ) -> None:
        self.texts[kernel.name] = kernel.text
        self.calls.append(
            Call(
                function=f"call_{len(self.calls)}_{_identifier(source.split(', ')[0])}",
                kind="attention" if kernel.heads else "rows",
                reads=_buffers(operand(slot, self.setting) for slot in kernel.args.inputs),
                writes=tuple(kernel.args.outputs),
                cleared=tuple(kernel.args.cleared),
                kernel=kernel.name,
                entry=row.name,
                family=row.family,
                arguments=tuple(map(self._argument, kernel.args.fields)),
                domain=domain,
                title=kernel.title,
                source=source,
                tiles=kernel.tiles,
                quads=kernel.quads,
                unit=kernel.unit,
                weights_rows=kernel.weights_rows,
                tile_products=kernel.tile_products,
                heads=kernel.heads,
                loops=kernel.loops,
                matrix=kernel.matrix,
                whole=kernel.whole,
                scratch=kernel.scratch,
                work=work,
                layer=layer,
            )
        )

    def _argument(self, known: Field) -> Argument:
        """What a call passes for a field."""
        value = known.value
        if known.kind == "vector":
            shape = "x".join(map(str, value.shape))
            weights = Weights(self.setting.pool.add(value))
            return Argument(known.name, weights, f"{value.dtype.name} {shape}")
        if known.kind == "number":
            return Argument(known.name, self._number(value))
        if known.kind == "site":
            return Argument(known.name, self._site(value))
        return Argument(known.name, operand(value, self.setting), ", ".join(value))

    def _number(self, number: float | int | Number) -> float | int | Loaded:
        """A number: known, or the only one of a buffer."""
        if not isinstance(number, Number):
            return number
        source = operand(number.slot, self.setting)
        return Loaded(source, ELEMENTS[number.dtype.name].c_type, number.reciprocal)

    def _site(self, node: Node) -> int:
        """The number of a place where `node` looks its indices up."""
        self.sites.append(site_of(node, self.setting.graph))
        return len(self.sites) - 1

    # -- row by row

    def _row_major(self, nodes: Sequence[Node]) -> None:
        """The call of a row-major node, or of several elementwise ones in one loop."""
        graph, choice = self.setting.graph, self.setting.choice
        row = table.general(nodes)
        kind = nodes[0].op if len(nodes) == 1 else "elementwise"
        source = ", ".join(dict.fromkeys(n.source for n in nodes if n.source))
        function = f"general_{len(self.calls)}_{_identifier(source or kind)}"
        self.texts[function] = row.emit(self._general_call(nodes, function))
        reads, writes = _interface(nodes, graph)
        slots = [(name, "flat") for name in writes]
        operands = [operand((choice.root(name), "flat"), self.setting) for name in reads]
        self.calls.append(
            Call(
                function=function,
                kind="general",
                reads=_buffers(operands),
                writes=tuple(slots),
                kernel=f"general_{kind}",
                entry=row.name,
                family=row.family,
                arguments=tuple(Argument("", value) for value in (*slots, *operands)),
                title=", ".join(node.op for node in nodes),
                source=source,
                work=Work(work_sample=-(-sum(multiply_adds(n, graph) for n in nodes) // 16)),
            )
        )

    def _general_call(self, nodes: Sequence[Node], function: str) -> render.Call:
        """What a general kernel is made for."""
        graph = self.setting.graph
        if len(nodes) > 1:
            return group_call(nodes, graph, function)
        site = self._site(nodes[0]) if OPS[nodes[0].op].lookup else 0
        return render.Call.of(nodes[0], graph, function, site)


def _interface(nodes: Sequence[Node], graph: Graph) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Values that the general kernel of some nodes takes, and those that it makes."""
    if len(nodes) > 1:
        return group_interface(nodes, graph)
    return tuple(name for name in nodes[0].inputs if name), nodes[0].outputs


def _identifier(text: str) -> str:
    """A C identifier made of an ONNX name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[-60:].strip("_") or "node"
