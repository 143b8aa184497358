"""Move reshapes and transposes towards the readers, and shorten the chains they form.

    x ── reshape ── transpose ── gelu ── quantize ── matmul
    ->
    x ── gelu ── quantize ── reshape ── transpose ── matmul

Elementwise ops whose other operands are single numbers (or moved in the same way) commute with a
layout op; so do ops over the last axis where the layout op leaves that axis alone.  What is left at
the end are chains directly in front of matrix products and outputs, where ``fuse_attention`` takes
them up; chains that cancel are gone.  ``expand`` sinks too: less is computed before it than after.

One walk does it: layout ops are not emitted where they stand but noted down (:class:`_Moved`), and
written out in front of the first reader that needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from sparsec.compiler.editor import Editor
from sparsec.compiler.ir import Graph, Node, Shape, element_count
from sparsec.compiler.ops import OPS
from sparsec.compiler.passes.layout_chain import Step, shorten
from sparsec.compiler.passes.patterns import last_axis_vector


@dataclass(frozen=True)
class _Moved:
    """A value that is `base` after `steps`, which have not been emitted yet."""

    base: str
    steps: tuple[Step, ...]
    source: str


def sink_layout(graph: Graph) -> Graph:
    """Move every layout op as far down as it goes."""
    return _Sinking(graph).run()


class _Sinking:
    """The walk: `edit` receives the new nodes, `moved` says how layout ops are put off.

    A value that one reader needs as it was (:meth:`settle`) may still be put off for another.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.edit = Editor(graph)
        self.edit.nodes = []
        self.moved: dict[str, _Moved] = {}
        self.settled: dict[str, str] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            if node.op in ("reshape", "transpose", "expand"):
                self.note_down(node)
            elif not self.sink(node):
                inputs = tuple(self.settle(name) if name else "" for name in node.inputs)
                self.edit.nodes.append(replace(node, inputs=inputs))
        self.edit.outputs = [self.settle(name) for name in self.graph.outputs]
        return self.edit.finish()

    def shape(self, name: str) -> Shape:
        return self.edit.values[name].shape

    def settle(self, name: str) -> str:
        """The value itself, with the steps that lead to it emitted."""
        moved = self.moved.get(name)
        if moved is None:
            return name
        if name not in self.settled:
            settled = moved.base
            for i, step in enumerate(moved.steps):
                last = i == len(moved.steps) - 1
                settled = step.emit(self.edit, settled, moved.source, name if last else None)
            self.settled[name] = settled
        return self.settled[name]

    def note_down(self, node: Node) -> None:
        """layout(layout(x)) -> the shortest chain that does the same, for later."""
        name = node.inputs[0]
        moved = self.moved.get(name, _Moved(name, (), ""))
        steps = (*moved.steps, Step.of(node))
        kept = max((i + 1 for i, step in enumerate(steps) if step.op == "expand"), default=0)
        middle = self.shape(moved.base)
        for step in steps[:kept]:
            middle = step.result(middle)
        shorter = shorten(middle, steps[kept:], self.shape(node.output))
        self.moved[node.output] = _Moved(moved.base, (*steps[:kept], *shorter), node.source)

    def cut(self, name: str, length: int) -> str:
        """A value without the last `length` steps that lead to it."""
        moved = self.moved[name]
        cut = moved.base
        for step in moved.steps[: len(moved.steps) - length]:
            cut = step.emit(self.edit, cut, moved.source)
        return cut

    def before(self, name: str, length: int) -> Shape:
        """The shape of a value without the last `length` steps that lead to it."""
        moved = self.moved[name]
        shape = self.shape(moved.base)
        for step in moved.steps[: len(moved.steps) - length]:
            shape = step.result(shape)
        return shape

    def sink(self, node: Node) -> bool:
        """Let the node work on its operands before they are moved, if it can."""
        if OPS[node.op].elementwise:
            carriers = [n for n in dict.fromkeys(node.inputs) if self.steps(n)]
            fits = bool(carriers) and self.shape(node.output) == self.shape(carriers[0])
        else:
            carriers = [n for n in node.inputs[:1] if self.steps(n)]
            fits = bool(carriers) and OPS[node.op].last_axis
        return fits and self.past(node, carriers)

    def steps(self, name: str) -> tuple[Step, ...]:
        moved = self.moved.get(name)
        return moved.steps if moved is not None else ()

    def past(self, node: Node, carriers: list[str]) -> bool:
        """Move as many steps as possible from in front of the node to behind it."""
        steps = self.steps(carriers[0])
        for length in range(len(steps), 0, -1):
            suffix = steps[-length:]
            shape = self.before(carriers[0], length)
            if any(self.steps(c)[-length:] != suffix for c in carriers):
                continue
            if any(self.before(c, length) != shape for c in carriers):
                continue
            operands = self.operands(node, carriers, suffix, shape)
            if operands is None:
                continue
            source = self.moved[carriers[0]].source
            attrs = dict(node.attrs)
            if "axis" in attrs and OPS[node.op].last_axis:
                attrs["axis"] = len(shape) - 1
            inner = self.edit.emit(
                node.op, [make() for make in operands], source=node.source, **attrs
            )
            if OPS[node.op].last_axis:
                extent = self.shape(inner)[-1]
                suffix = tuple(step.with_last_extent(extent) for step in suffix)
            self.moved[node.output] = _Moved(inner, suffix, source)
            return True
        return False

    def operands(
        self, node: Node, carriers: list[str], suffix: tuple[Step, ...], shape: Shape
    ) -> list[Callable[[], str]] | None:
        """How the node reads its operands in front of `suffix`; None if it cannot be there."""
        keeps = _keep_last_axis(suffix, shape)
        if OPS[node.op].last_axis:
            last = len(self.shape(carriers[0])) - 1
            if not keeps or node.attrs.get("axis", last) != last:
                return None
            rest = [partial(self.settle, name) for name in node.inputs[1:]]
            return [partial(self.cut, carriers[0], len(suffix)), *rest]
        makers: list[Callable[[], str]] = []
        for name in node.inputs:
            maker: Callable[[], str] | None = partial(self.cut, name, len(suffix))
            if name not in carriers:
                maker = self.alongside(node, name, shape[-1] if keeps else None)
            if maker is None:
                return None
            makers.append(maker)
        return makers

    def alongside(self, node: Node, name: str, extent: object) -> Callable[[], str] | None:
        """How an operand that is not moved looks further up; None if it cannot be there.

        Args:
            extent: of the last axis, if the layout leaves that axis alone.
        """
        shape, array = self.shape(name), self.edit.constants.get(name)
        quantizes = OPS[node.op].quantizes
        if shape == () or (quantizes and shape == (1,)):
            return partial(self.settle, name)
        if quantizes or array is None:
            return None
        if array.size == 1:
            return partial(self.edit.constant, array.reshape(()), name)
        vector = last_axis_vector(array, extent)
        return None if vector is None else partial(self.edit.constant, vector, name)


def _keep_last_axis(steps: tuple[Step, ...], shape: Shape) -> bool:
    for step in steps:
        after = step.result(shape)
        if step.op == "transpose":
            kept = step.perm[-1] == len(step.perm) - 1
        else:
            kept = step.op == "reshape" and bool(shape and after) and shape[-1] == after[-1]
            # Says nothing new, except of empty tensors.
            kept = kept and element_count(shape[:-1]) == element_count(after[:-1])
        if not kept:
            return False
        shape = after
    return True
